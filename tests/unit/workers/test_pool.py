import pytest

from tests.contract.light_runners import LightRunner, light_spec
from tests.contract.pool_contract import PoolContract
from workers.pool import LocalPool


class TestLocalPool(PoolContract):
    interrupts = False
    num_workers = 1

    @pytest.fixture
    def pool(self):
        with LocalPool(LightRunner(light_spec(), "local")) as pool:
            yield pool
