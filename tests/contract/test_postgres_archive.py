"""The archive contract on PostgreSQL."""

from collections.abc import Callable

import pytest

from tests.contract.archive_block_contract import ArchiveBlockContract
from tests.contract.archive_contract import ArchiveContract
from tests.contract.archive_outcome_contract import ArchiveOutcomeContract
from tests.contract.archive_stop_contract import ArchiveStopContract
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.slow  # starts a database server


class TestPostgresArchive(
    ArchiveContract, ArchiveOutcomeContract, ArchiveBlockContract, ArchiveStopContract
):
    @pytest.fixture
    def database(self, postgres: PostgresServer) -> str:
        return postgres.empty_database()

    @pytest.fixture
    def location(self, postgres: PostgresServer, database: str) -> str:
        return postgres.url(database, "contract")

    @pytest.fixture
    def execute(self, postgres: PostgresServer, database: str) -> Callable[[str], None]:
        def execute(statement: str) -> None:
            postgres.execute(statement, database)

        return execute
