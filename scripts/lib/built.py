"""What cargo has made of the kernels: asked of cargo, which makes it first if need be."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def simulator_tests(features):
    """The folder of the build script's objects, and the simulator's tests, built with these features."""
    command = ["cargo", "test", "--workspace", "--features", features, "--test", "sim", "--no-run",
               "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    out = tests = None
    for line in built.stdout.splitlines():
        message = json.loads(line)
        # The project's own package: what cargo calls it begins with where it is.
        if message["reason"] == "build-script-executed" and message["package_id"].startswith(f"path+file://{ROOT}#"):
            out = pathlib.Path(message["out_dir"])
        elif message.get("executable") and message["target"]["name"] == "sim":
            tests = message["executable"]
    if tests is None or out is None:
        sys.exit(f"the simulator's tests do not build:\n{built.stderr}")
    return out, tests


def object_of(folder, source):
    """The object of a source, given by its path below kernels/: as build/compile.rs names it."""
    return folder / (".".join(pathlib.Path(source).with_suffix("").parts) + ".o")
