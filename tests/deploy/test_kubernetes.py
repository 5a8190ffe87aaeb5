"""deploy/kubernetes: what kustomize makes of it, held against the API's schemas, our options and common sense."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from hypergpu.cli.app import app
from hypergpu.common.config import SystemConfig
from hypergpu.common.config.loading import load_config

DIRECTORY = Path(__file__).parents[2] / "deploy" / "kubernetes"
ROOTS = ("base", "jobset", *(f"overlays/{each.name}" for each in sorted(DIRECTORY.glob("overlays/*"))))
VERSION = "1.34"
"""Of the API. What is used here has been stable since 1.25."""
COMMANDS = {"coordinator": "coordinator", "node": "node", "netsim": "proxy"}
"""Command of `hypergpu` by container."""
SECRETS = {
    "hypergpu-tls": {"tls.crt", "tls.key", "ca.crt"},
    "hypergpu-tokens": {"join-token", "operator-token"},
}
"""What docs/kubernetes.md has users make."""

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


@cache
def objects(root: str) -> tuple[dict[str, Any], ...]:
    made = subprocess.run(["kubectl", "kustomize", DIRECTORY / root], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return tuple(yaml.safe_load_all(made.stdout))


def pods(root: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the metadata and the spec of each template of pods."""
    for each in objects(root):
        spec = each.get("spec", {})
        for holder in [spec, *(job["template"]["spec"] for job in spec.get("replicatedJobs", ()))]:
            if "containers" in holder.get("template", {}).get("spec", {}):
                yield holder["template"].get("metadata", {}), holder["template"]["spec"]


def containers(root: str) -> Iterator[dict[str, Any]]:
    return chain.from_iterable(spec["containers"] for _, spec in pods(root))


@pytest.mark.parametrize("root", ROOTS)
def test_each_object_is_what_the_api_takes(root: str) -> None:
    seen = {str(each) for each in objects("base")} if root != "base" else set()
    for each in objects(root):
        if each["kind"] != "JobSet" and str(each) not in seen:  # the schema of a custom resource is its operator's
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_the_schemas_refuse_a_word_that_the_api_does_not_know() -> None:
    service = next(each for each in objects("base") if each["kind"] == "Service")
    wrong = {**service, "spec": {**service["spec"], "cluster_ip": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_jobs_of_a_job_set_are_what_the_api_takes() -> None:
    [job_set] = (each for each in objects("jobset") if each["kind"] == "JobSet")
    for job in job_set["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        kubernetes_validate.validate(whole, VERSION, strict=True)


@pytest.mark.parametrize("root", ROOTS)
def test_the_services_take_these_options(root: str) -> None:
    found = list(containers(root))
    assert {each["name"] for each in found} >= {"coordinator", "node"}
    group: Any = typer.main.get_command(app)
    for each in found:
        command = group.commands[COMMANDS[each["name"]]]
        command.make_parser(command.make_context(each["name"], [], resilient_parsing=True)).parse_args(each["args"])


@pytest.mark.parametrize("root", ROOTS)
def test_the_settings_are_settings(root: str) -> None:
    given: dict[str, str] = {}
    for each in objects(root):
        given |= each["data"] if each["kind"] == "ConfigMap" else {}
    given |= {each["name"]: each.get("value", "") for every in containers(root) for each in every.get("env", ())}
    assert load_config(SystemConfig, environment=given).training.task == "digits"


@pytest.mark.parametrize("root", ROOTS)
def test_no_container_may_do_more_than_it_must(root: str) -> None:
    for _, spec in pods(root):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for each in spec["containers"]:
            context = each["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "--insecure" not in each["args"]


@pytest.mark.parametrize("root", ROOTS)
def test_nodes_see_neither_the_key_of_the_server_nor_the_operators_token(root: str) -> None:
    for _, spec in pods(root):
        for volume in spec["volumes"]:
            secret = volume.get("secret")
            keys = {item["key"] for item in secret["items"]} if secret and "items" in secret else None
            if secret:
                assert (keys or set()) <= SECRETS[secret["secretName"]]
            if secret and spec["containers"][0]["name"] == "node":
                assert keys in ({"ca.crt"}, {"join-token"})


@pytest.mark.parametrize("root", [root for root in ROOTS if root != "jobset"])
def test_what_selects_pods_finds_some(root: str) -> None:
    labels = [metadata["labels"] for metadata, _ in pods(root)]
    selectors = []
    for each in objects(root):
        spec = each.get("spec", {})
        chosen = spec.get("podSelector", spec.get("selector"))
        if chosen is not None:
            selectors.append(chosen.get("matchLabels", chosen))
        rules = chain(spec.get("ingress", ()), spec.get("egress", ()))
        peers = chain.from_iterable([*rule.get("from", ()), *rule.get("to", ())] for rule in rules)
        selectors += [peer["podSelector"]["matchLabels"] for peer in peers if set(peer) == {"podSelector"}]
    assert len(selectors) > 5
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels), selector


def test_a_change_of_the_settings_starts_the_pods_again() -> None:
    [settings] = (each for each in objects("base") if each["kind"] == "ConfigMap")
    named = {each["envFrom"][0]["configMapRef"]["name"] for each in containers("base")}
    assert named == {settings["metadata"]["name"]}
    assert settings["metadata"]["name"] != "hypergpu-settings", "with its digest"


def test_through_the_proxy_nodes_dial_the_proxy() -> None:
    dialled = {
        root: next(env["value"] for each in containers(root) if each["name"] == "node" for env in each["env"])
        for root in ("base", "overlays/netsim")
    }
    assert dialled == {"base": "coordinator:50051", "overlays/netsim": "netsim:50052"}
