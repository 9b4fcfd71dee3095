"""A Ray head without room for workers, whose autoscaler starts nodes for them on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Self

import psutil
import ray

from workers.local_session import LocalSession

_OBJECT_STORE_BYTES = 80_000_000
_START_S = 120
_IDLE_S = 12.0


class GrowingCluster:
    """Ray's own autoscaler with its provider for tests, which starts raylets as nodes.

    Args:
        most: How many nodes, of one CPU each, the autoscaler may start.
        version: Of the autoscaler, 1 or 2.
    """

    def __init__(self, most: int, version: int = 1) -> None:
        self._exit = ExitStack()
        self._session = self._exit.enter_context(LocalSession())
        self._exit.callback(self._session.end_processes)
        host = ray.util.get_node_ip_address()
        with socket.create_server((host, 0)) as probe:
            self.address = f"{host}:{probe.getsockname()[1]}"
        config = self._session.directory / "autoscaling.json"
        config.write_text(json.dumps(self._config(most)))
        self._start(str(config), version)

    def num_nodes(self) -> int:
        """How many nodes there are beside the head, by their raylets."""
        return len(self._raylets()) - 1

    def wait_for_nodes(self, number: int) -> None:
        """Wait until there are that many nodes beside the head."""
        end = time.monotonic() + _START_S
        while self.num_nodes() != number:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.num_nodes()} nodes, not {number}")
            time.sleep(0.5)

    def close(self) -> None:
        """End it, and every node of it."""
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _config(self, most: int) -> dict[str, object]:
        from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
        from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG

        return {
            **BASE_READONLY_CONFIG,
            "cluster_name": "growing",
            "max_workers": most,
            "upscaling_speed": 10,
            "idle_timeout_minutes": _IDLE_S / 60,
            "provider": {
                "type": "external",
                "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
                "gcs_address": self.address,
                "head_node_id": _HEAD_ID,
                "launch_multiple": True,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {
                _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "small": {
                    "resources": {"CPU": 1, "object_store_memory": _OBJECT_STORE_BYTES},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": most,
                },
            },
            "head_node_type": _HEAD_TYPE,
        }

    def _start(self, config: str, version: int) -> None:
        host, _, port = self.address.partition(":")
        done = subprocess.run(
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--head",
                f"--node-ip-address={host}", f"--port={port}", "--num-cpus=0",
                f"--autoscaling-config={config}", f"--temp-dir={self._session.directory}/ray",
                f"--object-store-memory={_OBJECT_STORE_BYTES}", "--include-dashboard=false",
                "--disable-usage-stats", "--include-log-monitor=false",
            ],
            env={
                **os.environ,
                "RAY_FAKE_CLUSTER": "1",
                "RAY_AUTH_MODE": "disabled",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
                "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
                "RAY_enable_autoscaler_v2": str(int(version == 2)),
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=_START_S,
        )  # fmt: skip
        if done.returncode != 0:
            self.close()
            raise RuntimeError(done.stdout)

    def _raylets(self) -> list[psutil.Process]:
        wanted = f"--gcs-address={self.address}"
        return [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "raylet"
            and any(wanted in part for part in process.info["cmdline"] or ())
        ]


# What the provider calls the head, and its kind.
_HEAD_TYPE = "ray.head.default"
_HEAD_ID = "f" * 51 + "00000"
