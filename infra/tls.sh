#!/usr/bin/env bash
# Prints a new certificate authority and one certificate of its, as the JSON that the workers' TLS secret holds.
# The authority's own key is thrown away: rotating means new material for all (docs/operations.md).
#
#   infra/tls.sh [DAYS] | aws secretsmanager create-secret --name symphony/tls --secret-string file:///dev/stdin
set -euo pipefail
days="${1:-365}"
umask 077
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
curve=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
openssl req -x509 "${curve[@]}" -days "$days" -subj "/CN=symphony-dask authority" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" \
    -keyout authority.key -out ca.pem 2>/dev/null
openssl req "${curve[@]}" -subj "/CN=symphony-dask" -keyout key.pem -out request.pem 2>/dev/null
openssl x509 -req -in request.pem -CA ca.pem -CAkey authority.key -CAcreateserial -days "$days" \
    -extfile <(printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n') -out cert.pem 2>/dev/null
python3 - <<'PYTHON'
import json, pathlib
print(json.dumps({name: pathlib.Path(f"{name}.pem").read_text() for name in ("ca", "cert", "key")}))
PYTHON
