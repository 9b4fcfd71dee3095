"""Routes that write merges as checkpoints, and hand them out."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Response
from fastapi.responses import StreamingResponse

from optimizer.service.models import Deleted, ExportAnswer, ExportList, ExportRequest
from optimizer.service.services import Parts, TheSearch, errors

router = APIRouter(tags=["exports"], prefix="/searches/{search}/exports")

ExportId = Annotated[str, Path(description="Id of the export.", max_length=100)]


@router.get("", responses=errors(404, 422))
def list_exports(parts: Parts, files: TheSearch) -> ExportList:
    """List the exports of a search, the newest first."""
    return ExportList(exports=parts.exports.all(files))


@router.post(
    "",
    status_code=202,
    responses={
        **errors(404, 409, 413, 422, 429),
        200: {"model": ExportAnswer, "description": "The same export is there already."},
    },
)
def start_export(
    parts: Parts, files: TheSearch, request: ExportRequest, response: Response
) -> ExportAnswer:
    """Write a merge as a Hugging Face checkpoint, beside the archive."""
    export, is_new = parts.exports.begin(files, request)
    if not is_new:
        response.status_code = 200
    return export


@router.get("/{export}", responses=errors(404, 422))
def show_export(parts: Parts, files: TheSearch, export: ExportId) -> ExportAnswer:
    """Say how far an export is."""
    return parts.exports.find(files, export)


@router.get(
    "/{export}/download",
    response_class=StreamingResponse,
    responses={
        **errors(404, 409, 422),
        200: {
            "description": "The checkpoint directory as a tar.",
            "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
        },
    },
)
def download_export(parts: Parts, files: TheSearch, export: ExportId) -> StreamingResponse:
    """Download a finished export as a tar, streamed while it is read."""
    tar = parts.exports.tar(files, export)
    headers = {
        # As RFC 5987 has it: ids may hold what no header does.
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(tar.name, safe='')}",
        "Content-Length": str(tar.size_bytes),
    }
    return StreamingResponse(tar.chunks, media_type="application/x-tar", headers=headers)


@router.delete("/{export}", responses=errors(404, 409, 422))
def delete_export(parts: Parts, files: TheSearch, export: ExportId) -> Deleted:
    """Delete an export; one that is being written is ended."""
    parts.exports.delete(files, export)
    return Deleted(deleted=export)
