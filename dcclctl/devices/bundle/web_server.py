"""Serve a bundle's web page on this computer only, with ONNX Runtime for the browser beside it.

The browser's runtime is fetched once from the npm package onnxruntime-web, checked by SHA-256 and kept in the user's
cache; from then on nothing is fetched.
"""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from dcclctl.errors import DataError, UsageError
from dcclctl.store.disk import cache_folder, whole_file

#: version of the npm package onnxruntime-web
RUNTIME_VERSION = "1.30.0"
#: file of the runtime → SHA-256
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
#: the page's own files, which every bundle holds
PAGE_FOLDER = "runner/web/"
#: scripts, styles and data from this server alone; no other request is possible
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}


def runtime_folder() -> Path:
    """Where the browser's runtime is kept."""
    return cache_folder() / f"onnxruntime-web-{RUNTIME_VERSION}"


def web_runtime(source: Path | None = None) -> dict[str, bytes]:
    """The browser's runtime, from the cache, or from the npm package, which then goes into the cache.

    Args:
        source: the package as a .tgz file or a folder; None: npm fetches it.

    Raises:
        UsageError: it is not in the cache, and npm is not installed. DataError: it has other hashes.
    """
    cache = runtime_folder()
    if source is None and all((cache / name).is_file() for name in RUNTIME_FILES):
        return _checked({name: (cache / name).read_bytes() for name in RUNTIME_FILES}, cache)
    with TemporaryDirectory() as folder:
        package = source or _fetched(Path(folder))
        found = _checked(_of_package(package), package)
    cache.mkdir(parents=True, exist_ok=True)
    for name, data in found.items():
        with whole_file(cache / name) as file:
            file.write(data)
    return found


def _fetched(folder: Path) -> Path:
    npm = shutil.which("npm")
    package = f"onnxruntime-web-{RUNTIME_VERSION}.tgz"
    remedy = f"Fetch the npm package onnxruntime-web {RUNTIME_VERSION} elsewhere and name it: --runtime {package}"
    if npm is None:
        raise UsageError(
            "the browser's runtime is not here yet, and npm, which would fetch it, is not installed", remedy
        )
    run = subprocess.run(
        [npm, "pack", "--silent", f"onnxruntime-web@{RUNTIME_VERSION}"], cwd=folder, capture_output=True, text=True
    )
    if run.returncode or not (folder / package).is_file():
        raise UsageError(f"npm could not fetch onnxruntime-web: {run.stderr.strip()[-300:]}", remedy)
    return folder / package


def _of_package(package: Path) -> dict[str, bytes]:
    try:
        if package.is_dir():
            places = {name: next(iter(sorted(package.rglob(name))), package / name) for name in RUNTIME_FILES}
            return {name: place.read_bytes() for name, place in places.items()}
        found = {}
        with tarfile.open(package) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                found[name] = b"" if member is None else member.read()
        return found
    except (OSError, KeyError, tarfile.TarError) as error:
        raise DataError(
            f"{package} is not the npm package onnxruntime-web: {error}", f"Give version {RUNTIME_VERSION} of it."
        ) from error


def _checked(files: Mapping[str, bytes], place: Path) -> dict[str, bytes]:
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != RUNTIME_FILES[name]:
            raise DataError(
                f"{name} of {place} is not that of onnxruntime-web {RUNTIME_VERSION}: its SHA-256 differs",
                f"Remove {runtime_folder()}, or give version {RUNTIME_VERSION} with --runtime.",
            )
    return dict(files)


def page_files(bundle: Mapping[str, bytes], runtime: Mapping[str, bytes]) -> dict[str, bytes]:
    """Address on the server → content: the page, the bundle and the runtime."""
    page = {name.removeprefix(PAGE_FOLDER): data for name, data in bundle.items() if name.startswith(PAGE_FOLDER)}
    data = {name: data for name, data in bundle.items() if not name.startswith("runner/")}
    return {"": page["index.html"], **page, **data, **runtime}


def server(files: Mapping[str, bytes], port: int = 0) -> ThreadingHTTPServer:
    """A server of these files on the loopback address; nothing else can be asked of it.

    Args:
        files: address → content. port: 0 takes any that is free.

    Raises:
        UsageError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # a page elsewhere that has its name point to this computer sends its own name
            host = self.headers.get("Host", "").rpartition(":")[0]
            name = self.path.partition("?")[0].lstrip("/")
            if host not in ("127.0.0.1", "localhost") or name not in files:
                self.send_error(404)
                return
            data = files[name]
            self.send_response(200)
            self.send_header("Content-Type", _TYPES.get(Path(name or "index.html").suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing for each request."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UsageError(
            f"--port {port}: {error.strerror}", "Choose another port, or 0 for any that is free."
        ) from error
