"""What deploy/ gives to several hosts that share a store: as right as can be known without Kubernetes, Docker, systemd and Envoy at work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from proteus_shards.config import Settings, load_settings
from proteus_shards.store.registry import check_url
from tests.deploy.test_machines import DEPLOY, IMAGE_UID, image_environment, image_environment_of, proteus

FOLDER = DEPLOY / "kubernetes" / "cluster"
STORE = "postgres://user:password@db/jobs"
END_SECONDS = Settings().drain_seconds_max + Settings().handover_seconds_max


def manifests() -> list[dict[str, Any]]:
    """Return what Kubernetes is told, but for the list of its files."""
    found = [each for path in sorted(FOLDER.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]
    return [each for each in found if each["kind"] != "Kustomization"]


def manifest(kind: str) -> dict[str, Any]:
    """Return the only manifest of a kind."""
    (found,) = (each for each in manifests() if each["kind"] == kind)
    return found


def settings_of(environment: dict[str, str]) -> Settings:
    """Return the settings of a host."""
    return load_settings({}, environment, check_store=check_url)


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_kubernetes_takes_the_manifests(version: str) -> None:
    """Each manifest is right by the schema of Kubernetes, without a field that it does not know."""
    for each in manifests():
        kubernetes_validate.validate(each, version, strict=True)


def test_the_manifests_belong_together() -> None:
    """Each is listed; selectors, services, budget and policy mean the same pods; volumes are mounted, and ports those of the container."""
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    stateful = manifest("StatefulSet")["spec"]
    labels, pod = stateful["template"]["metadata"]["labels"], stateful["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    services = {each["metadata"]["name"]: each["spec"] for each in manifests() if each["kind"] == "Service"}

    assert {path.name for path in FOLDER.glob("*.yaml")} == {*listed, "kustomization.yaml"}
    assert labels == manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert labels == manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    for service in services.values():
        assert labels == service["selector"]
        assert {port["targetPort"] for port in service["ports"]} <= set(ports)
    headless = services[stateful["serviceName"]]
    assert ("None", True) == (headless["clusterIP"], headless["publishNotReadyAddresses"])


def test_a_pod_is_a_host_of_a_cluster() -> None:
    """Known by the name that its headless service gives it, at a port of the container; with certificates, no rights, and time to hand over."""
    stateful = manifest("StatefulSet")["spec"]
    pod = stateful["template"]["spec"]
    (container,) = pod["containers"]
    given = {each["name"]: each.get("value", STORE) for each in container["env"]}
    settings = settings_of(proteus({**image_environment(), **given}))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    assert settings.cluster
    assert f"$(POD_NAME).{stateful['serviceName']}.$(POD_NAMESPACE).svc:{ports['node']}" == settings.node_address
    assert ["POD_NAME", "POD_NAMESPACE"] == [each["name"] for each in container["env"]][:2]
    assert (8080, 9090) == (ports["http"], ports["metrics"]) == (settings.port, settings.metrics_port)
    assert stateful["replicas"] <= settings.shards
    assert 1 == manifest("PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert pod["terminationGracePeriodSeconds"] > END_SECONDS
    mounted = tuple(mount["mountPath"] + "/" for mount in container["volumeMounts"])
    assert all(path.startswith(mounted) for path in (settings.cluster_cert, settings.cluster_ca, settings.tokens_file))
    (waits,) = pod["initContainers"]
    compile(waits["args"][0], "initContainer", "exec")
    assert settings.node_address.startswith(next(each["value"] for each in waits["env"] if each["name"] == "NAME") + ":")
    assert "/ready" == container["readinessProbe"]["httpGet"]["path"]
    assert IMAGE_UID == pod["securityContext"]["runAsUser"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not pod["automountServiceAccountToken"]
    assert pod["enableServiceLinks"] is False


def test_the_hosts_of_compose_are_one_cluster() -> None:
    """Three of them, each known by its name, with the same store and the same number of shards."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    hosts = {name: service for name, service in services.items() if service.get("profiles") == ["cluster"]}
    settings = {name: settings_of(image_environment_of(service)) for name, service in hosts.items()}

    assert ["host-1", "host-2", "host-3"] == sorted(hosts)
    assert "cluster" in services["postgres"]["profiles"]
    assert all(each.cluster and each.node_address == f"{name}:7400" for name, each in settings.items())
    assert 1 == len({(each.store, each.shards) for each in settings.values()})
    assert 3 == len({port for service in hosts.values() for port in service["ports"]})
    assert all(int(service["stop_grace_period"].removesuffix("s")) > END_SECONDS for service in hosts.values())


def test_the_settings_of_three_machines_are_settings(tmp_path: Path) -> None:
    """With the store and the certificates that the unit adds."""
    text = (DEPLOY / "systemd" / "cluster.conf").read_text()
    (command,) = re.findall(r"^ExecStart=(\S.*)$", text, re.MULTILINE)
    options = dict(re.findall(r"--(\S+) (\S+)", command))
    path = tmp_path / "settings.toml"
    path.write_text((DEPLOY / "systemd" / "cluster.toml").read_text())
    given = {"cluster_cert": options["cluster-cert"], "cluster_ca": options["cluster-ca"]}
    settings = load_settings(given, {"PROTEUS_STORE": STORE}, path, check_store=check_url)
    credentials = re.findall(r"^LoadCredential=(\S+?):", text, re.MULTILINE)

    assert (True, 12) == (settings.cluster, settings.shards)
    assert {f"${{CREDENTIALS_DIRECTORY}}/{name}" for name in credentials} == {settings.cluster_cert, settings.cluster_ca}
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0]) > END_SECONDS


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: systemd)")
def test_systemd_takes_the_unit_of_a_host(tmp_path: Path) -> None:
    """With what is laid over it."""
    program = tmp_path / "proteus-shards"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    folder = tmp_path / "proteus-shards.service.d"
    folder.mkdir()
    for source, target in (("proteus-shards.service", tmp_path / "proteus-shards.service"), ("cluster.conf", folder / "cluster.conf")):
        target.write_text((DEPLOY / "systemd" / source).read_text().replace("/opt/proteus-shards/bin/proteus-shards", str(program)))
    ran = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "proteus-shards.service")], capture_output=True, text=True, check=False, timeout=60
    )

    complaints = [line for line in ran.stderr.splitlines() if "proteus-shards" in line]
    assert (0, []) == (ran.returncode, complaints), ran.stderr


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (Debian: nginx)")
def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    """Without a complaint; and it repeats nothing that was sent."""
    text = (DEPLOY / "nginx" / "cluster.conf").read_text()
    assert "proxy_next_upstream off;" in text
    path = tmp_path / "nginx.conf"
    path.write_text(re.sub(r"^pid .*;", f"pid {tmp_path}/nginx.pid;", text, flags=re.MULTILINE).replace("/var/log/nginx", str(tmp_path)))
    ran = subprocess.run(
        ["nginx", "-e", str(tmp_path / "first.log"), "-p", str(tmp_path), "-c", str(path), "-t"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert 0 == ran.returncode, ran.stderr
    assert "warn" not in ran.stderr


def test_envoy_asks_who_is_ready_and_repeats_only_what_was_not_sent() -> None:
    """At the port that asks for no token."""
    config = yaml.safe_load((DEPLOY / "envoy" / "cluster.yaml").read_text())["static_resources"]
    (cluster,) = config["clusters"]
    (listener,) = config["listeners"]
    (host,) = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]

    assert "/ready" == cluster["health_checks"][0]["http_health_check"]["path"]
    for each in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]:
        assert 9090 == each["endpoint"]["health_check_config"]["port_value"]
    assert {"connect-failure"} == {
        route["route"]["retry_policy"]["retry_on"] for route in host["routes"] if "retry_policy" in route["route"]
    }
    assert all(route["route"]["cluster"] == cluster["name"] and "hash_policy" not in route["route"] for route in host["routes"])
