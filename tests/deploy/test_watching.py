"""What deploy/ gives to Prometheus and Grafana: rules that fire when they must, and names that a server has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proteus_shards.core.measures import STATES
from proteus_shards.tally import METRICS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "proteus-shards.json"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool beside the rules."""
    return subprocess.run(["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False, timeout=60)


def alerts() -> list[dict[str, Any]]:
    """Return the alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that show something."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[str]:
    """Return what the dashboard asks Prometheus."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def names_of(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each of our metrics in an expression, and the labels that are asked for."""
    for name, labels in re.findall(r"(proteus_\w+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) - {"instance", "job"}


def wrong_names(expressions: list[str]) -> list[str]:
    """Return what no server has, of metrics and their labels."""
    wrong = []
    for expression in expressions:
        for name, labels in names_of(expression):
            base = name
            metric = METRICS.get(base)
            if metric is None:
                base = re.sub(r"_(bucket|sum|count)$", "", name)
                metric = METRICS.get(base) if METRICS.get(base) is not None and METRICS[base].kind == "histogram" else None
            if metric is None:
                wrong.append(name)
            elif left := labels - set(metric.labels) - {"le"}:
                wrong.append(f"{name}: {left}")
    return wrong


def test_alerts_ask_for_metrics_that_there_are() -> None:
    """Each name and label of an alert is one of `METRICS`, in its tests too."""
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
    series = [series["series"] for test in tests for series in test["input_series"]]

    assert [] == wrong_names([alert["expr"] for alert in alerts()])
    assert [] == wrong_names(series)


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    """Each name and label of a panel is one of `METRICS`, and each state one of a job."""
    expressions = dashboard_expressions()
    states = {state for expression in expressions for state in re.findall(r'state="(\w+)"', expression)}

    assert len(expressions) > 40
    assert [] == wrong_names(expressions)
    assert states <= set(STATES)


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    """No two panels lie on each other, none is wider than the page, and each has a name of its own."""
    found = panels()
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells
        taken |= cells

    assert max(x for x, _ in taken) < 24
    assert len(found) == len({panel["title"] for panel in found})


@needs_promtool
def test_what_the_dashboard_asks_is_promql(tmp_path: Path) -> None:
    """Prometheus can read each expression, once Grafana has filled in its variables."""
    filled = [each.replace("$__rate_interval", "5m").replace("$instance", ".*") for each in dashboard_expressions()]
    rules = [{"record": f"panel:{place}", "expr": expression} for place, expression in enumerate(filled)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    checked = promtool("check", "rules", str(path))

    assert (0, "") == (checked.returncode, checked.stderr)


@needs_promtool
def test_the_rules_are_right() -> None:
    """Prometheus takes rules and configuration without a complaint."""
    rules, config = promtool("check", "rules", "alerts.yml"), promtool("check", "config", "prometheus.yml")

    assert (0, "") == (rules.returncode, rules.stderr)
    assert (0, "") == (config.returncode, config.stderr)


@needs_promtool
def test_each_alert_fires_when_it_must_and_not_else() -> None:
    """The cases beside the rules hold."""
    tested = promtool("test", "rules", "alerts_test.yml")

    assert 0 == tested.returncode, tested.stdout + tested.stderr


def test_each_alert_has_cases_and_a_section_of_the_runbook() -> None:
    """Whoever is woken up finds what to do."""
    names = [alert["alert"] for alert in alerts()]
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
    sections = set(re.findall(r"^### (Proteus\w+)$", (DEPLOY / "README.md").read_text(), re.MULTILINE))

    assert set(names) == sections
    assert {f"{name} {how}" for name in names for how in ("fires", "is quiet")} == {test["name"] for test in tests}
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"deploy/README.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in {"critical", "warning"}


def test_grafana_finds_what_it_is_told_to_show() -> None:
    """The provisioned data source and folder are those of compose and of the dashboard."""
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    provider = yaml.safe_load((provisioning / "dashboards" / "proteus-shards.yaml").read_text())["providers"][0]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]

    assert "http://prometheus:9090" == source["url"]
    assert any(volume.split(":")[1].startswith(provider["options"]["path"]) for volume in compose["grafana"]["volumes"])
    assert (
        f"{provider['options']['path']}/{DASHBOARD.name}" == compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    )
