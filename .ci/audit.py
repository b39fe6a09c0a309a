"""Known vulnerabilities of everything that is installed beside this script's Python, by pip-audit.

    python .ci/audit.py [PIP-AUDIT ARGUMENTS]     # e.g. --ignore-vuln GHSA-...

Exits with 1 if there is one. An index without vulnerability data, or no network, is no finding: it is said, and the
exit code is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Run pip-audit and say in a few lines what it found."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run([*command, "--format", "json", *sys.argv[1:]], capture_output=True, text=True, timeout=600)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(f"audit: could not run: {reason}")
        return 0
    found = [(package, vuln) for package in packages for vuln in package.get("vulns", [])]
    for package, vuln in found:
        fixed = ", ".join(vuln["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {vuln['id']}, fixed in {fixed}")
    skipped = sum("skip_reason" in package for package in packages)
    print(f"audit: {len(packages) - skipped} packages looked up, {len(found)} known vulnerabilities", end="")
    print(f"; {skipped} of which the index has no data" if skipped else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
