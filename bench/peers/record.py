"""The results as they come, in `results.json`."""

import datetime
import json
import os
from statistics import median

FILE = "results.json"


class Record:
    """Samples by what was measured, round by round. The file is written anew after every round."""

    def __init__(self, folder, resume, settings):
        self.folder = folder
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not resume:
            raise SystemExit(f"{self.path} exists: choose another --output, or --resume")
        if self.path.exists():
            self.data = json.loads(self.path.read_text())
            for name, value in settings.items():
                if name != "command" and self.data[name] != value:
                    raise SystemExit(f"{self.path} was measured with another {name}: choose another --output")
        else:
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            self.data = {
                "date": now,
                **settings,
                "linux": os.uname().release.split("-")[0],
                "load_average": [],
                "versions": {},
                "read_bandwidth_gb_s": summary([]),
                "done": [],
                "model": [],
                "linear": [],
                "failed": [],
            }

    def version(self, peer, versions):
        self.data["versions"][peer] = versions

    def failed(self, peer, kind, what, reason):
        entry = {"peer": peer, "kind": kind, "what": what, "reason": reason}
        if entry not in self.data["failed"]:
            self.data["failed"].append(entry)

    def bandwidth(self, gb_s):
        rounds = self.data["read_bandwidth_gb_s"]["rounds"]
        self.data["read_bandwidth_gb_s"] = summary([*rounds, gb_s])

    def sample(self, section, key, unit, value, **notes):
        """Adds a round to the row of `key`."""
        rows = self.data[section]
        row = next((row for row in rows if all(row.get(name) == part for name, part in key.items())), None)
        if row is None:
            row = {**key, unit: summary([])}
            rows.append(row)
        row |= notes
        row[unit] = summary([*row[unit]["rounds"], value])

    def is_done(self, group):
        return group in self.data["done"]

    def done(self, group):
        self.data["done"].append(group)
        self.save()

    def save(self):
        self.data["load_average"].append(round(os.getloadavg()[0], 2))
        part = self.path.with_suffix(".tmp")
        part.write_text(json.dumps(self.data, indent=1) + "\n")
        part.rename(self.path)


def summary(rounds):
    """Median, extremes and all rounds."""
    if not rounds:
        return {"median": None, "min": None, "max": None, "rounds": []}
    return {"median": median(rounds), "min": min(rounds), "max": max(rounds), "rounds": rounds}
