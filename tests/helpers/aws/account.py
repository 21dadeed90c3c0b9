"""AWS in this process (moto), reached over HTTP as the real one is."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

TEMPLATE = Path(__file__).parents[3] / "infra" / "template.yaml"
REGION = "us-east-1"
IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/oss-nvidia-driver-gpu-pytorch-2.7-ubuntu-22.04/latest/ami-id"
IMAGE = "ami-0123456789abcdef0"


class Aws:
    """Clients of a moto server, and stacks of the project's template on it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, service: str) -> Any:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return boto3.client(service, region_name=REGION, endpoint_url=self.url, **keys)

    def network(self) -> tuple[str, list[str]]:
        """The default VPC and its subnets."""
        ec2 = self.client("ec2")
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        return vpc, [s["SubnetId"] for s in ec2.describe_subnets()["Subnets"] if s["VpcId"] == vpc][:2]

    def parameters(self, **more: str) -> list[dict[str, str]]:
        vpc, subnets = self.network()
        given = {"VpcId": vpc, "SubnetIds": ",".join(subnets), "Package": "symphony-dask"}
        return [{"ParameterKey": k, "ParameterValue": v} for k, v in {**given, **more}.items()]

    def deploy(self, name: str = "demo", **more: str) -> dict[str, str]:
        """Create the stack, and return its outputs."""
        self.client("cloudformation").create_stack(
            StackName=name,
            TemplateBody=TEMPLATE.read_text(),
            Parameters=self.parameters(**more),
            Capabilities=["CAPABILITY_IAM"],
        )
        return self.outputs(name)

    def outputs(self, name: str = "demo") -> dict[str, str]:
        (stack,) = self.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        return {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", [])}

    def resources(self, name: str = "demo") -> dict[str, str]:
        """Physical ids by logical id."""
        listed = self.client("cloudformation").list_stack_resources(StackName=name)["StackResourceSummaries"]
        return {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in listed}


@contextmanager
def moto() -> Iterator[Aws]:
    """A moto server on a free port, empty."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            # What servers of this process know is shared among them.
            reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
            urllib.request.urlopen(reset).close()
            _publish_image()
            yield Aws(f"http://{host}:{port}")
        finally:
            server.stop()


def _publish_image() -> None:
    """Amazon's public parameters of the Deep Learning AMIs are not in moto, and its API refuses to add any."""
    from moto.core.utils import utcnow
    from moto.ssm.models import Parameter, ssm_backends

    parameter = Parameter(
        account_id="123456789012",
        name=IMAGE_PARAMETER,
        value=IMAGE,
        parameter_type="String",
        description=None,
        allowed_pattern=None,
        keyid=None,
        last_modified_date=utcnow(),
        version=1,
        data_type="text",
    )
    ssm_backends["123456789012"][REGION]._parameters[IMAGE_PARAMETER] = [parameter]
