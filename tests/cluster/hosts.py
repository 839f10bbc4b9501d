"""Hosts for tests on one machine: a laptop, and hosts that it reaches by SSH over a network of their own.

Each has its own network, processes, name, home folders, ``/tmp``, ``/etc``, ``/run`` and PostgreSQL, in Linux
namespaces that end with this program, however it ends.  Nothing outside their folder is changed, the machine's own
network neither: any number of such sets run side by side.  Hosts and laptop see each other, and not the internet.

``~/venv`` on a host is an environment of its own that also finds the packages of the environment that the tests run in:
pip installs what is new there and downloads nothing.  ``/srv`` is one folder for all: it stands in for object storage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.waiting import HANG_SECONDS, until

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "10.77.0"
USER, UID, HOME = "ubuntu", 60077, "/home/ubuntu"
"""The user of the hosts, who may ``sudo`` without a password, as on a cloud's; on the laptop it is root."""
PATH = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = {
    "openssh-server": "sshd",
    "openssh-client": "ssh",
    "iproute2": "ip",
    "nftables": "nft",
    "procps": "pgrep",
    "rsync": "rsync",
    "sudo": "sudo",
    "postgresql": "pg_createcluster",
    "curl": "curl",
}
"""Debian packages that the hosts need, and a program of each."""
PRIVATE = tuple(map(Path, ("/root", "/home", "/etc", "/var/lib/postgresql", "/var/log/postgresql", "/tmp")))
"""Folders of which each host has its own."""
NAMESPACES = ("--net", "--pid", "--mount", "--uts", "--ipc")
SSH = ("ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
SSHD = "-D -e -f /dev/null -h /etc/ssh/host_key -o UsePAM=no -o PidFile=none -o PasswordAuthentication=no"
LAPTOP_HOME = "/root"
KEY = f"{LAPTOP_HOME}/.ssh/id_ed25519"
"""The laptop's key, which opens all hosts."""


def lacking() -> str | None:
    """Why this machine cannot have such hosts; None where it can."""
    if os.geteuid() != 0:
        return "only root can make test hosts"
    if packages := [package for package, program in PROGRAMS.items() if shutil.which(program, path=PATH) is None]:
        return f"test hosts need the Debian packages {' '.join(packages)}"
    tried = ["unshare", *NAMESPACES, "--fork", "nft", "table inet test"]
    if subprocess.run(tried, check=False, capture_output=True, env={"PATH": PATH}).returncode:
        return "the kernel does not allow namespaces with a firewall"
    return None


def run(
    command: list[str], *, check: bool = True, timeout: float = HANG_SECONDS, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; with ``check`` one that fails is an AssertionError with all that it said."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout, input=input or "")
    assert not check or done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done


class Host:
    """A host: its folder, which stays, and the namespaces that it has while it is up."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name = name
        self.address = address
        self.folder = folder / name
        self._process: subprocess.Popen[bytes] | None = None
        for private in PRIVATE:
            self.path(private).mkdir(parents=True)
        subprocess.run(["cp", "-a", "/etc/.", self.path("/etc")], check=True)
        for own in ("/etc/postgresql", "/etc/ssh"):
            shutil.rmtree(self.path(own), ignore_errors=True)
            self.path(own).mkdir()
        for folder_of_postgres in ("/etc/postgresql", "/var/lib/postgresql", "/var/log/postgresql"):
            shutil.chown(self.path(folder_of_postgres), "postgres", "postgres")
        # No way to ask for other names.
        self.path("/etc/resolv.conf").unlink(missing_ok=True)
        self.path("/etc/resolv.conf").touch()
        self._add_user()

    def path(self, path: str | Path) -> Path:
        """Where a path of the host's own folders is on this machine."""
        return self.folder / str(path).lstrip("/")

    def _add_user(self) -> None:
        for name, line in (
            ("passwd", f"{USER}:x:{UID}:{UID}::{HOME}:/bin/bash"),
            ("group", f"{USER}:x:{UID}:"),
            ("shadow", f"{USER}:*:19000:0:99999:7:::"),
            ("sudoers.d/test", f"{USER} ALL=(ALL) NOPASSWD:ALL"),
        ):
            with self.path(f"/etc/{name}").open("a") as file:
                file.write(f"{line}\n")
        shutil.copytree("/etc/skel", self.path(HOME))

    def boot(self, program: str) -> None:
        """Starts the host, with an empty ``/tmp``, and a program in it."""
        shutil.rmtree(self.path("/tmp"))
        self.path("/tmp").mkdir()
        self.path("/tmp").chmod(0o1777)
        needed = [
            path
            for path in map(Path, {sys.prefix, sys.base_prefix, str(ROOT)})
            if any(path.is_relative_to(private) for private in PRIVATE)
        ]
        inner = f"/srv/{self.name}"
        script = [
            "set -e",
            # Here all is in reach while the folders above it are replaced.
            f"mount --rbind {self.folder.parent} /srv",
            *[f"mkdir -p {inner}{path} && mount --rbind {path} {inner}{path}" for path in needed],
            *[f"mount --rbind {inner}{path} {path}" for path in PRIVATE],
            "mount --rbind /srv/shared /srv",
            "mount -t tmpfs -o mode=755 tmpfs /run",
            "mkdir -m 755 /run/sshd",
            "mkdir -m 1777 /run/lock",
            "install -d -o postgres -g postgres -m 2775 /run/postgresql",
            "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
            f"hostname {self.name}",
            "ip link set lo up",
            "touch /run/up",
            # This shell is process 1, which buries the dead.
            f"{program} &",
            "wait",
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-c", "\n".join(script)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": PATH, "HOME": LAPTOP_HOME, "USER": "root", "LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        until(
            lambda: self._children() != [] and self.inside("test", "-e", "/run/up", check=False).returncode == 0,
            f"{self.name} starts, see {self.folder / 'log'}",
        )

    @property
    def pid(self) -> int:
        """Process 1 of the host, by its number on this machine."""
        (pid,) = self._children()
        return pid

    def _children(self) -> list[int]:
        assert self._process is not None, f"{self.name} is stopped"
        assert self._process.poll() is None, (self.folder / "log").read_text()
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def enter(self, *command: str, cwd: str | Path = "/") -> list[str]:
        """The command as this machine has to start it to run as root in the host, as at its console."""
        environment = [f"PATH={PATH}", f"HOME={LAPTOP_HOME}", "USER=root", "LANG=C.UTF-8"]
        # Ends with the program that is started here, which is only its parent.
        nsenter = ["nsenter", "--target", str(self.pid), *NAMESPACES, "setpriv", "--pdeathsig", "KILL"]
        return [*nsenter, "env", "-i", "-C", str(cwd), *environment, *command]

    def inside(
        self,
        *command: str,
        cwd: str | Path = "/",
        check: bool = True,
        timeout: float = HANG_SECONDS,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as root in the host, as at its console."""
        return run(self.enter(*command, cwd=cwd), check=check, timeout=timeout, input=input)

    def stop(self) -> None:
        """As if its power failed: all its processes end at once, its disk stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Hosts:
    """A laptop, a head and workers, and a stranger on the same network, who knows no secret."""

    def __init__(self, folder: Path, num_workers: int = 2) -> None:
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        self.shared.chmod(0o1777)
        self.laptop = Host("laptop", f"{NETWORK}.1", folder)
        self.head = Host("head", f"{NETWORK}.11", folder)
        self.workers = [Host(f"worker-{i + 1}", f"{NETWORK}.{12 + i}", folder) for i in range(num_workers)]
        self.stranger = Host("stranger", f"{NETWORK}.99", folder)
        self.all = [self.head, *self.workers, self.stranger]
        _make_key(self.laptop.path(KEY))
        _make_key(folder / "host_key")
        names = "".join(f"{host.address} {host.name}\n" for host in (self.laptop, *self.all))
        for host in (self.laptop, *self.all):
            host.path("/etc/hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for host in self.all:
            shutil.copy(folder / "host_key", host.path("/etc/ssh/host_key"))
            (host.path(HOME) / ".ssh").mkdir(mode=0o700)
            shutil.copy(self.laptop.path(f"{KEY}.pub"), host.path(HOME) / ".ssh/authorized_keys")
            make_environment(host.path(HOME))
            run(["chown", "-R", f"{UID}:{UID}", str(host.path(HOME))])

    def up(self) -> None:
        """Starts all."""
        self.laptop.boot("sleep infinity")
        self._network("link", "add", "bridge", "type", "bridge")
        self._network("addr", "add", f"{self.laptop.address}/24", "dev", "bridge")
        self._network("link", "set", "bridge", "up")
        for host in self.all:
            self.start(host)

    def down(self) -> None:
        """Ends all."""
        for host in (*self.all, self.laptop):
            host.stop()

    def start(self, host: Host) -> None:
        """Starts a host that is stopped; its disk is as it was."""
        host.boot(f"/usr/sbin/sshd {SSHD}")
        self._network("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._network("link", "set", host.name, "master", "bridge", "up")
        host.inside("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.inside("ip", "link", "set", "eth0", "up")
        # Leads nowhere, but programs ask for it to learn the host's own address.
        host.inside("ip", "route", "add", "default", "via", self.laptop.address)
        until(lambda: self.ssh(host, "true", check=False).returncode == 0, f"{host.name} answers to SSH")

    def cut(self, host: Host) -> None:
        """Takes the host off the network: packets vanish."""
        self._network("link", "set", host.name, "down")

    def heal(self, host: Host) -> None:
        """Brings it back."""
        self._network("link", "set", host.name, "up")

    def ssh(
        self, host: Host, command: str, *, check: bool = True, timeout: float = HANG_SECONDS, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as the host's user, from the laptop by SSH."""
        return run(self.enter_by_ssh(host, command), check=check, timeout=timeout, input=input)

    def enter_by_ssh(self, host: Host, command: str) -> list[str]:
        """The command as this machine has to start it to run as the host's user, from the laptop by SSH."""
        return self.laptop.enter(*SSH, f"{USER}@{host.address}", command)

    def _network(self, *arguments: str) -> None:
        # In the laptop's network alone: the numbers of processes are this machine's.
        run(["nsenter", "--target", str(self.laptop.pid), "--net", "ip", *arguments])


def make_environment(home: Path) -> None:
    """``~/venv``: an empty environment that finds the packages of this one, whose programs it has too."""
    venv.create(home / "venv")
    paths = sysconfig.get_paths()
    (packages,) = (home / "venv/lib").glob("python*/site-packages")
    (packages / "tests.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    interpreter = f"#!{HOME}/venv/bin/python\n"
    for program in Path(sys.prefix, "bin").iterdir():
        if program.is_file() and program.read_bytes().startswith(b"#!"):
            first, _, rest = program.read_text().partition("\n")
            if "python" in first:
                (home / "venv/bin" / program.name).write_text(interpreter + rest)
                (home / "venv/bin" / program.name).chmod(0o755)
    settings = home / ".config/pip/pip.conf"
    settings.parent.mkdir(parents=True)
    # pip reads the last line the other way round: it turns the isolation off.
    settings.write_text("[global]\nno-index = true\ndisable-pip-version-check = true\nno-build-isolation = false\n")


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)])
