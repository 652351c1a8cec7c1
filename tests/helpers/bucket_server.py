"""A storage emulator on loopback as a command: prints its address, serves `gs://bucket`.

gcp-storage-emulator, with what it lacks and the code relies on, by Google's documentation of the
JSON API: preconditions (ifGenerationMatch), the generation among the headers of a download,
requests served at the same time, and no object from an upload that was cut off.
"""

import functools
import io
import threading
from http import HTTPStatus, server

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

BUCKET = "bucket"


class PreconditionFailed(Exception):
    pass


class Conditions(threading.local):
    """The ifGenerationMatch of the request that this thread serves."""

    generation = None


def enforce_conditions(storage, conditions):
    def checked(write):
        @functools.wraps(write)
        def run(bucket, name, *arguments):
            if conditions.generation is not None:
                try:
                    present = storage.get_file_obj(bucket, name)["generation"]
                except NotFound:
                    present = "0"
                if present != conditions.generation:
                    raise PreconditionFailed
            return write(bucket, name, *arguments)

        return run

    storage.create_file = checked(storage.create_file)
    storage.delete_file = checked(storage.delete_file)


class Handler(emulator.RequestHandler):
    lock = threading.Lock()  # the emulator's dictionaries are not made for threads
    conditions = Conditions()

    def do_GET(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            return  # the client died: Cloud Storage makes no object of half an upload
        self.rfile = io.BytesIO(body) if length else self.rfile
        query = emulator.parse_qs(emulator.urlparse(self.path).query)
        with self.lock:
            self.conditions.generation = query.get("ifGenerationMatch", [None])[0]
            try:
                emulator.Router(self).handle(self.command)
            except PreconditionFailed:
                self.send_response(HTTPStatus.PRECONDITION_FAILED)
                self.send_header("Content-Length", "0")
                self.end_headers()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_):
        pass


def with_generation(download):
    def run(request, response, storage, *arguments, **options):
        download(request, response, storage, *arguments, **options)
        try:
            stored = storage.get_file_obj(
                request.params["bucket_name"], request.params["object_id"]
            )
        except NotFound:
            return
        response["x-goog-generation"] = stored["generation"]

    return run


def main():
    storage = emulator.create_server("localhost", 0, in_memory=True, default_bucket=BUCKET)._storage
    storage.buckets[BUCKET]["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
    storage._write_config_to_file = lambda: None  # else every write writes the list of all objects
    enforce_conditions(storage, Handler.conditions)
    objects.download = with_generation(objects.download)
    httpd = server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, storage))
    print(f"http://127.0.0.1:{httpd.server_port}", flush=True)
    httpd.serve_forever()


if __name__ == "__main__":
    main()
