"""Run a program that dies with its parent: `tether [--user U] [--signal S] [--lock F] --parent PID -- argv`.

The kernel sends the death signal when the *thread* that spawned the child ends: spawn from the main thread.
Executed by path under `python -I -S`, hence the standard library only. Linux; elsewhere a killed parent
leaves orphans.
"""

import argparse
import ctypes
import fcntl
import os
import pwd
import signal
import sys
import time

PR_SET_PDEATHSIG = 1  # prctl(2)
LOCK_WAIT_S = 10.0  # a server killed a moment ago may need this long until its last process is gone
EX_TEMPFAIL = 75  # sysexits.h: the lock stayed taken
EX_ORPHAN = 71  # sysexits.h (EX_OSERR): the parent was gone before we were ready


def tethered(
    argv: list[str],
    *,
    parent_pid: int,
    user: str | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
    lock: str | None = None,
) -> list[str]:
    """`argv` wrapped so that it runs below this tether; the process id stays the same through both execs."""
    options = ["--parent", str(parent_pid), "--signal", death_signal.name.removeprefix("SIG")]
    options += ["--user", user] if user else []
    options += ["--lock", lock] if lock else []
    return [sys.executable, "-I", "-S", __file__, *options, "--", *argv]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="tether")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--signal", choices=["INT", "KILL", "TERM"], default="KILL")
    parser.add_argument("--user")
    parser.add_argument("--lock")
    parser.add_argument("argv", nargs="+")
    given = parser.parse_args(arguments)
    if given.lock:
        _hold(given.lock)
    if given.user:
        _become(given.user)
    # After the change of user, which clears the death signal; before the parent check, which closes the gap.
    _die_with_parent(signal.Signals[f"SIG{given.signal}"])
    if os.getppid() != given.parent:
        sys.exit(EX_ORPHAN)
    try:
        os.execvp(given.argv[0], given.argv)
    except OSError as error:
        sys.exit(f"tether: cannot run {given.argv[0]}: {error.strerror}")


def _hold(path: str) -> None:
    """Lock `path` for as long as the program and everything it forks lives: the descriptor is inherited."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.set_inheritable(descriptor, True)
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                sys.stderr.write(f"tether: {path} is still locked by another process\n")
                sys.exit(EX_TEMPFAIL)
            time.sleep(0.02)


def _become(user: str) -> None:
    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _die_with_parent(death_signal: signal.Signals) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        sys.exit(f"tether: prctl: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
