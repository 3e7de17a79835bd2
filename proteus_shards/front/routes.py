"""Every call of the native API, and who serves it.

The lane serves the calls whose answers are small; what may be megabytes for the asking is behind it, where a connection asks for one page at a time.
"""

from __future__ import annotations

from proteus_shards.front.cluster_calls import CLUSTER_OPERATIONS, CLUSTER_WITH_BODY
from proteus_shards.front.control import CONTROL_OPERATIONS, CONTROL_WITH_BODY
from proteus_shards.front.operations import OPERATIONS, WITH_BODY, Parse
from proteus_shards.front.schedules import SCHEDULE_OPERATIONS, SCHEDULE_WITH_BODY

ROUTES: dict[tuple[str, str], Parse] = {**OPERATIONS, **CONTROL_OPERATIONS, **SCHEDULE_OPERATIONS, **CLUSTER_OPERATIONS}
ROUTES_WITH_BODY: frozenset[Parse] = WITH_BODY | CONTROL_WITH_BODY | SCHEDULE_WITH_BODY | CLUSTER_WITH_BODY
LARGE = frozenset({"/dead", "/queues", "/jobs", "/find", "/schedules", "/cluster"})
LANE_ROUTES = {(method, path): parse for (method, path), parse in ROUTES.items() if path not in LARGE}
