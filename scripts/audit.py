"""Known vulnerabilities of the versions in constraints.txt, by pip-audit's report.

    pip-audit -r constraints.txt --no-deps --disable-pip --format json | python scripts/audit.py

Exit code 1 where one is known. What the database does not know is no reason to fail, but said: with
no package found at all, as on a machine that cannot reach the database, nothing was checked.
"""

import json
import sys
from typing import Any


def summary(report: dict[str, Any]) -> tuple[list[str], int]:
    """What to print about a report, and the exit code."""
    lines = []
    checked = 0
    for package in report["dependencies"]:
        if "skip_reason" in package:
            continue
        checked += 1
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "none yet"
            lines.append(
                f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}"
            )
    total = len(report["dependencies"])
    if not checked:
        return ["skipped: the database of vulnerabilities knows or answers nothing here"], 0
    code = 1 if lines else 0
    lines.append(f"{checked} of {total} versions were checked for known vulnerabilities")
    return lines, code


def main() -> None:
    """Read the report on standard input."""
    text = sys.stdin.read()
    if not text.strip():
        print("skipped: pip-audit could not be run")
        return
    lines, code = summary(json.loads(text))
    print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
