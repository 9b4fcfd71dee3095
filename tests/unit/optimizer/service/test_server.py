"""How the service listens."""

import asyncio
import socket

from optimizer.service.server import _listen
from optimizer.service.settings import ServiceSettings


def test_answers_do_not_wait_for_the_callers_acknowledgement(tmp_path):
    async def sent_at_once() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = _listen(ServiceSettings(archive_dir=tmp_path, port=0))
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            try:
                return await asyncio.wait_for(found, 10)
            finally:
                writer.close()
                await writer.wait_closed()

    assert asyncio.run(sent_at_once()) == 1
