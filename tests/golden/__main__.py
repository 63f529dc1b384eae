"""``python -m contseg.tests.golden``: fixtures that the suite reproduces, by operation, and those without checker."""

import sys
from collections import Counter

from contseg.tests.golden.harness import DTYPES, FOLDERS, load_checkers, manifest, run


def main() -> int:
    failures: list[str] = []
    for folder in FOLDERS:
        known = load_checkers()
        entries = [e for e in manifest(folder) if folder == "golden" or e["operation"] in known]
        unchecked = Counter(e["operation"] for e in manifest(folder) if e["operation"] not in known)
        total, passed, arrays, without, excused = Counter(), Counter(), Counter(), {}, {}
        for entry in entries:
            name = entry["operation"]
            total[name] += 1
            try:
                fixtures = [run(folder, entry, dtype) for dtype in DTYPES]
            except Exception as error:  # a broken checker is a failure like a wrong number
                reason = " ".join(str(error).split()) or type(error).__name__
                failures.append(f"{entry['file']}: {reason[:200]}")
                continue
            passed[name] += 1
            arrays[name] += len(fixtures[0].compared)
            without.update({f"{name}: {k}": why for k, why in fixtures[0].without_counterpart.items()})
            excused.update({f"{entry['file']}: {k}": why for k, why in fixtures[1].excused.items()})
        print(f"{folder}: {passed.total()} of {total.total()} fixtures, {arrays.total()} references compared")
        for name in total:
            print(f"  {name:<18} {passed[name]:>3} of {total[name]:<3} ({arrays[name]} references)")
        for key, why in without.items():
            print(f"  without counterpart  {key}: {why}")
        for key, why in excused.items():
            print(f"  not in float32       {key}: {why}")
        names = ", ".join(f"{name} ({n})" for name, n in unchecked.items())
        print(f"  {unchecked.total()} fixtures have no checker" + (f": {names}" if names else ""))
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
