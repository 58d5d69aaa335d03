#!/usr/bin/env bash
# mlflow-skinny 3.17.2
#
# Behaviour: an answer 401 or 403 whose body is JSON without MLflow's own error_code, as proxies and gateways send it, is raised as
# RestException INTERNAL_ERROR with get_http_status_code() 500; with an HTML body the same answer keeps its number in the text.
# Seen: body {"message": "Unauthorized"}: INTERNAL_ERROR, 500. Body <h1>401</h1>: MlflowException '... failed with error code 401 != 200'.
# Why a good guess is wrong: 'the exception tells a refused user from a broken server'. A program that retries on 500 and asks for a password
# on 401 retries for ever, and whoever reads the log looks for a fault in the server.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check mlflow-skinny==3.17.2
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import http.server
import threading

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException


def asked(body):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        MlflowClient(f"http://127.0.0.1:{server.server_port}").get_experiment_by_name("x")
    except MlflowException as error:
        return error
    finally:
        server.shutdown()


json = asked('{"message": "Unauthorized"}')
assert type(json) is RestException and json.error_code == "INTERNAL_ERROR", json
assert json.get_http_status_code() == 500, json.get_http_status_code()
html = asked("<h1>401 Unauthorized</h1>")
assert type(html) is MlflowException and "401" in str(html), html
print("a 401 with a JSON body is told as a 500")
PYTHON
