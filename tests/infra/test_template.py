"""The CloudFormation template, deployed to moto; what moto ignores (IAM) is read from the template."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.aws.account import IMAGE, TEMPLATE, Aws
from tests.helpers.command_line import tool


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    from cfnlint.decode import cfn_yaml  # takes a second to load

    return json.loads(json.dumps(cfn_yaml.load(str(TEMPLATE))))


def statements(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the controller may do, by statement id."""
    return {s["Sid"]: s for s in template["Resources"]["ControllerPolicy"]["Properties"]["PolicyDocument"]["Statement"]}


def test_cfn_lint_has_nothing_to_say() -> None:
    done = subprocess.run([tool("cfn-lint"), str(TEMPLATE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stack_is_created_updated_and_deleted(aws: Aws) -> None:
    outputs = aws.deploy(BudgetEmail="ops@example.com", PackageObjects="arn:aws:s3:::wheels/*")
    assert outputs["ClusterName"] == "symphony"
    assert outputs["LaunchTemplateId"].startswith("lt-")
    assert outputs["SubnetIds"].split(",") == aws.network()[1]
    assert outputs["NoticesQueueUrl"].startswith("http")
    cloudformation = aws.client("cloudformation")
    # moto looks at what changed in the template, not at parameters.
    cloudformation.update_stack(
        StackName="demo",
        TemplateBody=TEMPLATE.read_text().replace("pip install --quiet", "pip install --no-cache-dir --quiet"),
        Parameters=aws.parameters(),
        Capabilities=["CAPABILITY_IAM"],
    )
    assert "pip install --no-cache-dir --quiet" in user_data(aws, "$Latest")
    cloudformation.delete_stack(StackName="demo")
    assert aws.client("ec2").describe_launch_templates()["LaunchTemplates"] == []
    assert [r["RoleName"] for r in aws.client("iam").list_roles()["Roles"]] == []


def test_two_stacks_stand_side_by_side(aws: Aws) -> None:
    one = aws.deploy("one", ClusterName="one")
    two = aws.deploy("two", ClusterName="two")
    assert one["LaunchTemplateId"] != two["LaunchTemplateId"]
    assert one["NoticesQueueUrl"] != two["NoticesQueueUrl"]


def test_an_instance_of_the_launch_template_has_image_type_group_and_tags(aws: Aws) -> None:
    outputs = aws.deploy(ClusterName="vision", InstanceType="g5.xlarge")
    ec2 = aws.client("ec2")
    (instance,) = ec2.run_instances(
        LaunchTemplate={"LaunchTemplateId": outputs["LaunchTemplateId"]}, MinCount=1, MaxCount=1
    )["Instances"]
    assert (instance["ImageId"], instance["InstanceType"]) == (IMAGE, "g5.xlarge")
    tags = {t["Key"]: t["Value"] for t in instance["Tags"] if not t["Key"].startswith("aws:")}
    assert tags == {"symphony:cluster": "vision", "Name": "vision-worker"}
    assert [g["GroupId"] for g in instance["SecurityGroups"]] == [outputs["WorkerGroupId"]]


def user_data(aws: Aws, version: str = "$Default") -> str:
    data = launch_template_data(aws, version)
    return base64.b64decode(data["UserData"]).decode()


def launch_template_data(aws: Aws, version: str = "$Default") -> dict[str, Any]:
    (found,) = aws.client("ec2").describe_launch_template_versions(
        LaunchTemplateName="demo-worker", Versions=[version]
    )["LaunchTemplateVersions"]
    return found["LaunchTemplateData"]


def test_metadata_need_a_token_disks_are_encrypted_and_a_shutdown_terminates(aws: Aws) -> None:
    aws.deploy()
    data = launch_template_data(aws)
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    (disk,) = data["BlockDeviceMappings"]
    assert disk["Ebs"]["Encrypted"] is True
    assert disk["Ebs"]["VolumeType"] == "gp3"
    assert disk["Ebs"]["DeleteOnTermination"] is True
    assert {spec["ResourceType"] for spec in data["TagSpecifications"]} == {"instance", "volume"}
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_user_data_fit_are_a_sound_script_and_hold_no_secret(aws: Aws, tmp_path: Path) -> None:
    outputs = aws.deploy(SchedulerAddress="tls://10.0.0.5:8786", Package="s3://wheels/symphony_dask-1-py3-none-any.whl")
    pem = "-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----\n"
    secret = json.dumps({"ca": pem, "cert": pem, "key": pem})
    aws.client("secretsmanager").create_secret(Name=outputs["TlsSecret"], SecretString=secret)
    text = user_data(aws)
    assert len(text.encode()) < 16_384
    assert len(text.encode()) < 3_000  # as it stands: room for what sites add
    assert text.startswith("#!/bin/bash\n")
    assert "PRIVATE KEY" not in text
    assert "MIIabc" not in text
    assert "SYMPHONY_SECRET=symphony/tls\n" in text
    script = tmp_path / "user-data.sh"
    script.write_text(text)
    subprocess.run(["bash", "-n", str(script)], check=True)
    checked = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_user_data_limit_the_boot_before_anything_can_fail(aws: Aws) -> None:
    aws.deploy(BootLimitMinutes="7")
    commands = [line for line in user_data(aws).splitlines() if line and not line.startswith("#")]
    assert commands[:2] == [
        "set -euo pipefail",
        "systemd-run --unit=symphony-boot-limit --on-active=7min /usr/bin/systemctl poweroff",
    ]


def test_nobody_outside_reaches_a_worker_or_the_scheduler(aws: Aws) -> None:
    outputs = aws.deploy()
    groups = [outputs["SchedulerGroupId"], outputs["WorkerGroupId"]]
    opened = {}
    for group in aws.client("ec2").describe_security_groups(GroupIds=groups)["SecurityGroups"]:
        for rule in group["IpPermissions"]:
            assert not rule["IpRanges"]
            assert not rule["Ipv6Ranges"]
            assert not rule["PrefixListIds"]
            for pair in rule["UserIdGroupPairs"]:
                key = (groups.index(pair["GroupId"]), groups.index(group["GroupId"]))
                opened.setdefault(key, []).append((rule["FromPort"], rule["ToPort"]))
    scheduler, worker = 0, 1
    assert {key: sorted(ports) for key, ports in opened.items()} == {
        (worker, scheduler): [(8786, 8788)],
        (scheduler, scheduler): [(8786, 8788)],
        (scheduler, worker): [(8790, 8799), (40000, 40099)],
        (worker, worker): [(40000, 40099)],
    }


def test_a_worker_may_read_its_tls_material_and_nothing_else(template: dict[str, Any]) -> None:
    role = template["Resources"]["WorkerRole"]["Properties"]
    (policy,) = role["Policies"]
    tls, package = policy["PolicyDocument"]["Statement"]
    assert tls["Action"] == "secretsmanager:GetSecretValue"
    assert tls["Resource"]["Fn::Sub"].endswith(":secret:${TlsSecret}-??????")
    condition, readable, nothing = package["Fn::If"]
    assert (condition, readable["Action"], readable["Resource"], nothing) == (
        "ReadsPackage",
        "s3:GetObject",
        {"Ref": "PackageObjects"},
        {"Ref": "AWS::NoValue"},
    )
    (sessions,) = role["ManagedPolicyArns"]
    assert sessions["Fn::If"][0] == "HasSessions"
    assert template["Parameters"]["SessionManager"]["Default"] == "false"


def test_the_controller_launches_by_the_template_under_the_tag_and_ends_only_what_has_it(
    template: dict[str, Any],
) -> None:
    allowed = statements(template)
    assert not any("*" in action for s in allowed.values() for action in [s["Action"]] if isinstance(action, str))
    tagged = {"Ref": "ClusterName"}
    launch = allowed["LaunchTagged"]
    assert launch["Condition"]["StringEquals"] == {"aws:RequestTag/symphony:cluster": tagged}
    for sid in ("LaunchTagged", "LaunchByTemplate", "ImageAndGroupsOfTheTemplate"):
        assert "WorkerTemplate" in json.dumps(allowed[sid]["Condition"]["ArnEquals"]["ec2:LaunchTemplate"])
    end = allowed["TerminateTagged"]
    assert end["Action"] == "ec2:TerminateInstances"
    assert end["Condition"] == {"StringEquals": {"aws:ResourceTag/symphony:cluster": tagged}}
    passed = allowed["HandWorkersTheirRole"]
    assert passed["Action"] == "iam:PassRole"
    assert passed["Resource"] == {"Fn::GetAtt": ["WorkerRole", "Arn"]}
    without_condition = {sid for sid, s in allowed.items() if "Condition" not in s}
    assert without_condition == {"Look", "StackOutputs", "Notices", "Tls"}
    everywhere = {sid for sid, s in allowed.items() if s["Resource"] == "*"}
    assert everywhere == {"Look"}
    assert all(":Describe" in a or ":Get" in a for a in allowed["Look"]["Action"])


def test_spot_notices_come_to_the_queue(aws: Aws) -> None:
    outputs = aws.deploy()
    notice = {"instance-id": "i-0abc", "instance-action": "terminate"}
    kind = "EC2 Spot Instance Interruption Warning"
    events, sqs = aws.client("events"), aws.client("sqs")
    events.put_events(Entries=[{"Source": "aws.ec2", "DetailType": "Something else", "Detail": "{}"}])
    events.put_events(Entries=[{"Source": "aws.ec2", "DetailType": kind, "Detail": json.dumps(notice)}])
    (message,) = sqs.receive_message(QueueUrl=outputs["NoticesQueueUrl"], MaxNumberOfMessages=10)["Messages"]
    assert json.loads(message["Body"])["detail"] == notice


def test_only_events_of_the_rule_may_be_sent_to_the_queue(template: dict[str, Any]) -> None:
    policy = template["Resources"]["NoticesPolicy"]["Properties"]["PolicyDocument"]
    (statement,) = policy["Statement"]
    assert statement["Principal"] == {"Service": "events.amazonaws.com"}
    assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["NoticesRule", "Arn"]}}}


def test_an_address_that_could_end_a_line_of_the_script_is_refused(template: dict[str, Any]) -> None:
    for name in ("ClusterName", "SchedulerAddress", "Package", "TlsSecret"):
        pattern = template["Parameters"][name]["AllowedPattern"]
        for bad in ("a'b", "a\nb", "a$(b)", "a`b`", "a b"):
            assert not re.fullmatch(pattern, bad)


def test_the_installed_package_has_the_template() -> None:
    import importlib.resources

    assert importlib.resources.files("infra").joinpath("template.yaml").read_text() == TEMPLATE.read_text()
