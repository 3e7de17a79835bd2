"""What deploy/ gives to Docker, systemd, Kubernetes and Envoy: as right as can be known without any of them at work."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement

from proteus_shards.config import Settings, load_settings
from proteus_shards.store.registry import check_url

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DRAIN_SECONDS = Settings().drain_seconds_max
IMAGE_UID = 10001


def manifests() -> list[dict[str, Any]]:
    """Return what Kubernetes is told, but for the list of its files."""
    found = [each for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]
    return [each for each in found if each["kind"] != "Kustomization"]


def manifest(kind: str) -> dict[str, Any]:
    """Return the only manifest of a kind."""
    (found,) = (each for each in manifests() if each["kind"] == kind)
    return found


def pod() -> dict[str, Any]:
    """Return how a pod is."""
    spec: dict[str, Any] = manifest("StatefulSet")["spec"]["template"]["spec"]
    return spec


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def image_environment() -> dict[str, str]:
    """Return the environment of the image."""
    (text,) = [rest for word, rest in instructions() if word == "ENV" and "PROTEUS_HOST" in rest]
    return dict(part.split("=", 1) for part in shlex.split(text))


def proteus(environment: dict[str, str]) -> dict[str, str]:
    """Return what of an environment is ours."""
    return {name: value for name, value in environment.items() if name.startswith("PROTEUS_")}


# --- the image -------------------------------------------------------------------------------------------------


def test_the_image_runs_as_nobody_in_particular_from_a_second_stage() -> None:
    """Nothing that builds is in it, and its process has no rights."""
    found = instructions()
    words = [word for word, _ in found]

    assert 2 == words.count("FROM")
    last = found[max(place for place, word in enumerate(words) if word == "FROM") :]
    assert [("USER", f"{IMAGE_UID}:{IMAGE_UID}")] == [each for each in last if each[0] == "USER"]
    assert not any("pip" in rest for word, rest in last if word == "RUN")
    assert ["proteus-shards"] == json.loads(dict(last)["ENTRYPOINT"])
    check = dict(last)["HEALTHCHECK"]
    command = json.loads(check[check.index("CMD ") + 4 :])
    assert command[0] == "python"
    compile(command[2], "HEALTHCHECK", "exec")


def test_the_image_copies_what_is_there_and_sent() -> None:
    """Each file that is copied is in the clone, and the list of what is sent to the builder lets it through."""
    sent = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for word, rest in instructions() if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]]

    assert set(copied) == set(sent)
    assert all((ROOT / name).exists() for name in copied)


def test_the_settings_of_the_image_are_settings() -> None:
    """The environment is one that a server takes; who may ask is for whoever runs it to say."""
    settings = load_settings({}, {**proteus(image_environment()), "PROTEUS_INSECURE": "true"}, check_store=check_url)

    assert ("0.0.0.0", 8080, 9090) == (settings.host, settings.port, settings.metrics_port)


def locked(name: str) -> dict[str, list[tuple[str, Marker | None]]]:
    """Return versions by package, with the marker under which each counts, as a file of locks says them. Each has a hash."""
    found: dict[str, list[tuple[str, Marker | None]]] = {}
    text = re.sub(r"\s*\\\n\s*", " ", (DEPLOY / name).read_text())
    for line in text.splitlines():
        if line.strip() and not line.strip().startswith("#"):
            head, *hashes = line.split(" --hash=")
            requirement = Requirement(head)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert hashes
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", each) for each in hashes)
            found.setdefault(requirement.name.lower(), []).append((specifier.version, requirement.marker))
    return found


def test_what_is_installed_is_locked_by_hash() -> None:
    """Each dependency and each of every extra's that the image has is locked, at a version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = list(project["project"]["dependencies"])
    for extra in ("postgres", "redis", "dynamodb", "client", "otel"):
        wanted += extras[extra]
    versions = locked("requirements.lock")

    for line in wanted:
        requirement = Requirement(line)
        assert requirement.name.lower() in versions, f"{requirement.name} is not locked: see deploy/README.md"
        for version, _ in versions[requirement.name.lower()]:
            assert requirement.specifier.contains(version), f"{requirement.name} {version} is locked, and {requirement.specifier} wanted"
    (build,) = project["build-system"]["requires"]
    assert Requirement(build).specifier.contains(locked("build.lock")["hatchling"][0][0])


# --- compose ---------------------------------------------------------------------------------------------------


def test_compose_has_each_store_and_keeps_to_this_machine() -> None:
    """A profile a store; every port is one of the loopback address; a server's root is read-only and its drain has time."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    servers = {name: service for name, service in services.items() if name.startswith("server-")}

    assert {"sqlite", "postgres", "redis", "dynamodb-local"} == {profile for each in servers.values() for profile in each["profiles"]}
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    for service in servers.values():
        assert service["read_only"]
        assert ["ALL"] == service["cap_drop"]
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS
        settings = load_settings({}, {**image_environment_of(service)}, check_store=check_url)
        assert set(service.get("depends_on", {})) <= set(services)
        assert settings.store.partition(":")[0] == service["profiles"][0].removesuffix("-local")


def image_environment_of(service: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a service made from the image."""
    return proteus({**image_environment(), **service["environment"]})


def test_compose_scrapes_the_server_that_there_is() -> None:
    """Prometheus knows the servers by the name that all of them have."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    aliases = {
        alias for service in compose["services"].values() for alias in service.get("networks", {}).get("default", {}).get("aliases", [])
    }

    assert [f"{alias}:{image_environment()['PROTEUS_METRICS_PORT']}" for alias in aliases] == scraped


# --- systemd ---------------------------------------------------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """Return what stands in the unit, by name."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / "proteus-shards.service").read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_is_told_and_watched() -> None:
    """It waits until the server is ready, feeds on its signs of life, renews by SIGHUP, and leaves time to drain."""
    found = unit()

    assert (["notify"], ["main"], ["mixed"]) == (found["Type"], found["NotifyAccess"], found["KillMode"])
    assert int(found["WatchdogSec"][0]) > 0
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert int(found["TimeoutStopSec"][0]) > DRAIN_SECONDS


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: systemd)")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Nothing is there that systemd could complain of, and it calls the unit well guarded."""
    program = tmp_path / "proteus-shards"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (DEPLOY / "systemd" / "proteus-shards.service").read_text().replace("/opt/proteus-shards/bin/proteus-shards", str(program))
    path = tmp_path / "proteus-shards.service"
    path.write_text(text)

    verified = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False, timeout=60)
    guarded = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    complaints = [line for line in verified.stderr.splitlines() if path.name in line]
    assert (0, []) == (verified.returncode, complaints), verified.stderr
    assert 0 == guarded.returncode, guarded.stdout[-500:]


# --- Kubernetes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_kubernetes_takes_the_manifests(version: str) -> None:
    """Each manifest is right by the schema of Kubernetes, without a field that it does not know."""
    for each in manifests():
        kubernetes_validate.validate(each, version, strict=True)


def test_the_manifests_belong_together() -> None:
    """Each is listed; selectors, services, budget and policy mean the same pods; names of ports are those of the container."""
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    labels = manifest("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    (container,) = pod()["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    assert {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} == {*listed, "kustomization.yaml"}
    assert labels == manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert labels == manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert {"http": 8080, "metrics": 9090} == ports
    services = {each["metadata"]["name"]: each["spec"] for each in manifests() if each["kind"] == "Service"}
    assert services[manifest("StatefulSet")["spec"]["serviceName"]]["clusterIP"] == "None"
    for service in services.values():
        assert labels.items() <= service["selector"].items()
        assert {port["targetPort"] for port in service["ports"]} <= set(ports)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claimed = {claim["metadata"]["name"] for claim in manifest("StatefulSet")["spec"]["volumeClaimTemplates"]}
    assert mounted == claimed | {volume["name"] for volume in pod()["volumes"]}


def test_the_pod_has_no_rights_and_time_to_drain() -> None:
    """No root, nothing writable but what is mounted, no token of the cluster, and no variables that are no settings."""
    spec = pod()
    (container,) = spec["containers"]

    assert spec["securityContext"]["runAsNonRoot"]
    assert IMAGE_UID == spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert not spec["automountServiceAccountToken"]
    assert spec["enableServiceLinks"] is False
    assert spec["terminationGracePeriodSeconds"] > DRAIN_SECONDS
    assert {"/ready", "/health"} == {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    environment = proteus({**image_environment(), **{each["name"]: each["value"] for each in container["env"]}})
    assert load_settings({}, environment, check_store=check_url).tokens_file


# --- Envoy -----------------------------------------------------------------------------------------------------


def test_envoy_knows_the_host_of_each_request_or_refuses_it() -> None:
    """Every route to the hosts has a hash policy, the last one refuses, and nothing moves a queue to another host."""
    config = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())["static_resources"]
    (cluster,) = config["clusters"]
    (listener,) = config["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]

    for route in host["routes"]:
        if "route" in route:
            assert route["route"]["cluster"] == cluster["name"]
            assert 1 == len(route["route"]["hash_policy"])
            assert "retry_policy" not in route["route"]
    assert 421 == host["routes"][-1]["direct_response"]["status"]
    assert "RING_HASH" == cluster["lb_policy"]
    assert not {"health_checks", "outlier_detection"} & set(cluster)
    rewrite = next(route for route in host["routes"] if route["name"] == "in_path")["route"]["hash_policy"][0]["header"]["regex_rewrite"]
    assert "a%2Fb" == re.sub(rewrite["pattern"]["regex"], rewrite["substitution"], "/v2/queues/a%2Fb/jobs?num_jobs=3")
    several = host["routes"][1]["match"]["headers"][0]["string_match"]["safe_regex"]["regex"]
    wrong = ("/next?queue=a&queue=b", "/complete-and-next?queue=a&job_id=1&next_queue=b")
    assert [True, True] == [re.fullmatch(several, path) is not None for path in wrong]
    assert re.fullmatch(several, "/next?queue=a&wait=5") is None
