"""The kustomize base: every resource is valid Kubernetes and says what a running pod needs."""

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cli.serve import SERVICES
from runtime import config

BASE = Path(__file__).resolve().parent.parent.parent / "k8s" / "base"
VERSIONS = ("1.32", "1.35", "1.37")


def resources() -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    return [
        document
        for name in kustomization["resources"]
        for document in yaml.safe_load_all((BASE / name).read_text())
    ]


def deployments() -> dict[str, dict[str, Any]]:
    return {
        resource["metadata"]["labels"]["app.kubernetes.io/component"]: resource
        for resource in resources()
        if resource["kind"] == "Deployment"
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid(version: str) -> None:
    for resource in resources():
        kubernetes_validate.validate(resource, version, strict=True)


def test_every_file_of_the_base_is_named_in_the_kustomization() -> None:
    named = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    files = {path.relative_to(BASE).as_posix() for path in BASE.rglob("*.yaml")}
    assert files - {"kustomization.yaml"} == set(named)


def test_kubectl_renders_the_base_with_the_same_resources() -> None:
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(BASE)], capture_output=True, check=True, timeout=60
    ).stdout
    names = {(r["kind"], r["metadata"]["name"]) for r in yaml.safe_load_all(rendered)}
    assert names == {(r["kind"], r["metadata"]["name"]) for r in resources()}


def test_each_service_has_a_deployment_that_runs_it_with_probes() -> None:
    assert set(deployments()) == set(SERVICES)
    for service, deployment in deployments().items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["serve", service]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert ("httpGet" if service == "edge" else "grpc") in container[probe]


def test_the_config_map_is_read_without_complaint() -> None:
    (config_map,) = [r for r in resources() if r["kind"] == "ConfigMap"]
    settings = config.with_local_defaults(config.load(None, config_map["data"], {}))
    assert settings.edge.routers == ("dns:///onegate-router:50051",)
    assert settings.router.listen == "0.0.0.0:50051"


def test_with_postgresql_auth_and_usage_run_twice_without_volumes() -> None:
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(BASE.parent / "postgresql")],
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    found = list(yaml.safe_load_all(rendered))
    assert not [r for r in found if r["kind"] == "PersistentVolumeClaim"]
    stores = {r["metadata"]["name"]: r["spec"] for r in found if r["kind"] == "Deployment"}
    for name in ("auth", "usage"):
        spec = stores[f"onegate-{name}"]
        assert (spec["replicas"], spec["strategy"]["type"]) == (2, "RollingUpdate")
        (container,) = spec["template"]["spec"]["containers"]
        (variable,) = container["env"]
        assert variable["name"] in config._VARIABLES
        secret = variable["valueFrom"]["secretKeyRef"]
        assert (secret["name"], secret["optional"]) == ("onegate-database", False)
        assert {"name": "data", "emptyDir": {}} in spec["template"]["spec"]["volumes"]
    for resource in found:
        kubernetes_validate.validate(resource, VERSIONS[-1], strict=True)


def test_without_the_secret_of_a_database_auth_and_usage_are_on_their_volumes() -> None:
    for name in ("auth", "usage"):
        (container,) = deployments()[name]["spec"]["template"]["spec"]["containers"]
        (variable,) = container["env"]
        assert variable["name"] == f"ONEGATE_{name.upper()}_DSN"
        assert variable["valueFrom"]["secretKeyRef"]["optional"]
