"""Makes `.venv` and installs the project into it; standard library only, run as a script by run_pipeline.sh.

Complete means: `.venv` holds a stamp with the digest of pyproject.toml. Anything else (no folder, an interrupted pip,
a broken interpreter, a changed pyproject.toml) is mended by the same start. A complete one costs no pip and no output.
"""

# ruff: noqa: T201 (a script that talks before anything but the standard library is there)

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EXTRAS = ("teacher", "train", "serve", "dev")
CPU_COST = "about 0.5 GB to fetch, 2 GB of disk, 1 to 5 minutes"
CUDA_COST = "about 3.5 GB to fetch, 8 GB of disk, 5 to 20 minutes"
_EXIT_FAILED, _EXIT_USER, _EXIT_INTERRUPTED = 1, 2, 130
_HEARTBEAT_S = 15.0
_BIG_MB = 20.0


class SetUpError(Exception):
    """Set-up cannot go on; the text is for the user, the code for the shell."""

    def __init__(self, text: str, code: int = _EXIT_FAILED) -> None:
        super().__init__(text)
        self.code = code


class Environment:
    """The `.venv` of a clone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.stamp = self.folder / "complete.json"
        self.log = self.folder / "install.log"

    def is_complete(self) -> bool:
        """The stamp fits pyproject.toml, and the interpreter that it was made with still answers."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(stamp == self._expected(self.python_version()))

    def python_version(self) -> str | None:
        """`3.11`, or None when the environment's interpreter does not run."""
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        return _output([str(self.python), "-I", "-c", code])

    def set_up(self) -> None:
        """Make, mend and fill the environment, then stamp it."""
        self.stamp.unlink(missing_ok=True)
        if not self._is_usable():
            say(f"making {self.folder}")
            shutil.rmtree(self.folder, ignore_errors=True)
            made = subprocess.run([sys.executable, "-m", "venv", str(self.folder)], capture_output=True, text=True)
            if made.returncode != 0:
                reason = (made.stdout + made.stderr).strip().splitlines() or ["no output"]
                raise SetUpError(f"{self.folder}: could not be made ({reason[-1]})")
        announce(self)  # its pip knows the user's settings, and nothing has been fetched yet
        self._drop_torn_packages()
        self._pip_install()
        temporary = self.stamp.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._expected(self.python_version())) + "\n", encoding="utf-8")
        temporary.replace(self.stamp)

    def _expected(self, python: str | None) -> dict[str, Any]:
        digest = hashlib.sha256((self.root / "pyproject.toml").read_bytes()).hexdigest()
        return {"pyproject_sha256": digest, "extras": list(EXTRAS), "python": python, "folder": str(self.folder)}

    def _is_usable(self) -> bool:
        """An interpreter new enough, with a pip that starts, in the place that it was made for."""
        try:
            config = (self.folder / "pyvenv.cfg").read_text(encoding="utf-8")
        except OSError:
            return False
        made_at = re.search(r"^command = .* -m venv (?:.* )?(/.*)$", config, re.MULTILINE)
        if made_at and made_at[1] != str(self.folder):  # a moved clone: its scripts point to the old place
            return False
        version = self.python_version()
        if version is None or tuple(map(int, version.split("."))) < (3, 11):
            return False
        return _output([str(self.python), "-m", "pip", "--version"]) is not None

    def _drop_torn_packages(self) -> None:
        """Forget packages whose installation was cut: pip would take them for installed."""
        for site in self.folder.glob("lib/python*/site-packages"):
            torn = [info for info in site.glob("*.dist-info") if not (info / "RECORD").exists()]
            for path in [*torn, *site.glob("~*")]:
                shutil.rmtree(path, ignore_errors=True)

    def _pip_install(self) -> None:
        target = f"{self.root}[{','.join(EXTRAS)}]"
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
        with self.log.open("wb") as log:
            pip = subprocess.Popen(
                [*command, "--editable", target], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.root
            )
            try:
                _follow(pip, log)
            finally:
                _end(pip)
        if pip.returncode != 0:
            tail = self.log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-12:]
            lines = "\n".join(f"    {line}" for line in tail)
            raise SetUpError(f"pip failed (exit code {pip.returncode}); the end of {self.log}:\n{lines}")


def main() -> int:
    environment = Environment(Path(__file__).resolve().parents[1])
    if environment.is_complete():
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        check_python()
        with (environment.root / "pyproject.toml").open("rb") as lock:
            wait_for(lock)
            if not environment.is_complete():  # else another start has just made it
                environment.set_up()
                say(f"set-up complete: {environment.folder}")
    except SetUpError as e:
        print(f"error: {e}\nthe same command goes on from here", file=sys.stderr)
        return e.code
    except KeyboardInterrupt:
        print("\nset-up stopped; the same command goes on from here", file=sys.stderr)
        return _EXIT_INTERRUPTED
    return 0


def check_python() -> None:
    """Refuse an interpreter that cannot make an environment."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info < (3, 11):  # noqa: UP036 (this script may be started by any Python)
        raise SetUpError(f"Python 3.11 or newer is needed, this is {version} ({sys.executable})", _EXIT_USER)
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as e:
        raise SetUpError(
            f"Python {version} ({sys.executable}) lacks its module '{e.name}'; "
            f"install it (apt-get install python{version}-venv) or name another Python: PYTHON=/path/to/python",
            _EXIT_USER,
        ) from None


def wait_for(lock: Any) -> None:
    """Hold the clone's set-up; a second start waits for the first."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another start is setting this clone up; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def announce(environment: Environment) -> None:
    """Say what will be fetched, before anything is."""
    settings = pip_sources(environment.python)
    plain_linux = sys.platform.startswith("linux") and not settings
    cost = CUDA_COST if plain_linux else CPU_COST
    free = shutil.disk_usage(environment.root).free / 1e9
    say(f"set-up of {environment.folder}: {cost} ({free:.1f} GB free); details in {environment.log}")
    if settings:
        say(f"pip is told to look in other places too ({', '.join(settings)}): a CPU build of torch there is taken")
        if sys.platform.startswith("linux"):
            say(f"without one, torch comes with CUDA: {CUDA_COST}")
    elif plain_linux and not has_gpu_driver():
        say(
            "warning: there is no GPU driver here, and PyPI's torch for Linux carries CUDA (most of that size). "
            "To save it, stop now and point pip to a CPU build of torch: "
            "export PIP_EXTRA_INDEX_URL=<an index of CPU builds> or PIP_FIND_LINKS=<a folder with the wheel> "
            "(or the same in pip.conf)"
        )


def pip_sources(python: Path) -> list[str]:
    """Names of the user's pip settings (environment or pip.conf) that may lead to a CPU build."""
    found = {n for n in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS") if os.environ.get(n)}
    listed = _output([str(python), "-m", "pip", "config", "list"]) or ""
    for key, value in re.findall(r"^([^=\n]+)=(.*)$", listed, re.MULTILINE):
        option = key.rpartition(".")[2]
        if option in ("extra-index-url", "find-links") or (option == "index-url" and "cpu" in value):
            found.add(
                f"pip.conf {option}" if not key.startswith(":env:") else f"PIP_{option.upper().replace('-', '_')}"
            )
    return sorted(found)


def has_gpu_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def say(text: str) -> None:
    print(text, flush=True)


def _follow(pip: subprocess.Popen[bytes], log: Any) -> None:
    """Copy pip's output into the log, and show how far it is."""
    assert pip.stdout is not None
    progress = _Progress()
    os.set_blocking(pip.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(pip.stdout, selectors.EVENT_READ)
        rest = b""
        while True:
            if selector.select(1.0):
                data = pip.stdout.read(1 << 16)
                if not data:
                    break
                log.write(data)
                log.flush()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    progress.take(line.decode("utf-8", "replace").strip())
            progress.tick()
    progress.end()
    pip.wait()


class _Progress:
    """pip's lines boiled down: one moving line on a terminal, the large files and a heartbeat in a log."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._packages, self._megabytes, self._doing = 0, 0.0, "resolving"
        self._moving = sys.stdout.isatty()

    def take(self, line: str) -> None:
        if line.startswith(("Collecting ", "Processing ")):
            self._packages += 1
            self._doing = line.split()[1].rsplit("/", 1)[-1][:50]
        elif found := re.match(r"Downloading (\S+)(?: \(([\d.]+) ([kMG])B\))?", line):
            size = float(found[2] or 0) * {"k": 1e-3, "M": 1.0, "G": 1e3}[found[3] or "k"]
            self._megabytes += size
            self._doing = f"{found[1].rsplit('/', 1)[-1][:50]} ({size:.0f} MB)"
            if size >= _BIG_MB and not self._moving:
                self._show()
        elif line.startswith("Installing collected packages"):
            self._doing = f"installing {line.count(',') + 1} packages"
            self._last = 0.0

    def tick(self) -> None:
        if self._moving or time.monotonic() - self._last > _HEARTBEAT_S:
            self._show()

    def end(self) -> None:
        if self._moving:
            print("\r\x1b[K", end="", flush=True)

    def _show(self) -> None:
        self._last = time.monotonic()
        minutes, seconds = divmod(int(self._last - self._began), 60)
        text = (
            f"pip {minutes}:{seconds:02d}  {self._packages} packages, {self._megabytes:.0f} MB fetched  {self._doing}"
        )
        if self._moving:
            print(f"\r\x1b[K{text[:100]}", end="", flush=True)
        else:
            say(text)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no pip behind."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _output(command: list[str]) -> str | None:
    """What a command prints, or None when it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
