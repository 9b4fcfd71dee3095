"""A stand-in for a head that speaks TLS: what the Jobs API answers, to who has the token.

``python -m tests.unit.workers.tls_head CHAIN KEY`` serves on a port of its choice, which it prints,
until it is killed. In a process of its own: asyncio warns of every connection that is refused.
"""

import asyncio
import ssl
import sys
from importlib.metadata import version

from aiohttp import web

from workers.ray_jobs import MARK

TOKEN = "a-token"
JOB = {
    "type": "SUBMISSION", "submission_id": "mergefront-x-1", "job_id": None, "driver_info": None,
    "status": "RUNNING", "entrypoint": "true", "message": "under way", "error_type": None,
    "start_time": 1000, "end_time": None, "metadata": {MARK: "1"}, "runtime_env": {},
    "driver_agent_http_address": None, "driver_node_id": None, "driver_exit_code": None,
}  # fmt: skip


@web.middleware
async def wants_token(request, handler):
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return web.Response(status=401)
    return await handler(request)


async def answer_version(_):
    return web.json_response(
        {"version": "4", "ray_version": version("ray"), "ray_commit": "", "session_name": "s"}
    )


async def answer_jobs(_):
    return web.json_response([JOB])


async def answer_job(_):
    return web.json_response(JOB)


async def answer_logs(_):
    return web.json_response({"logs": "all of it\n"})


async def tail_logs(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str("line by line\n")
    await socket.close()
    return socket


async def serve(chain, key):
    app = web.Application(middlewares=[wants_token])
    app.add_routes(
        [
            web.get("/api/version", answer_version),
            web.get("/api/jobs/", answer_jobs),
            web.get("/api/jobs/{job}", answer_job),
            web.get("/api/jobs/{job}/logs", answer_logs),
            web.get("/api/jobs/{job}/logs/tail", tail_logs),
        ]
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
