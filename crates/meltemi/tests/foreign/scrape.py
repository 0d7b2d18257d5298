"""Reads Prometheus text with Prometheus' own Python parser.

    scrape.py URL NAME...

Says, as JSON: {"families": all names, "samples": [{"name", "labels", "value"}] of the families asked for}. Text that the
parser refuses ends it with an error; so does a family that comes twice, which a server of Prometheus would refuse too.
"""

import json
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

with urllib.request.urlopen(sys.argv[1], timeout=20) as answer:
    text = answer.read().decode()
    kind = answer.headers["content-type"]
if not kind.startswith("text/plain"):
    sys.exit(f"content type {kind}")

names, samples, seen = [], [], set()
for family in text_string_to_metric_families(text):
    if family.name in names:
        sys.exit(f"family {family.name} comes twice")
    names.append(family.name)
    for sample in family.samples:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        if key in seen:
            sys.exit(f"{key} comes twice")
        seen.add(key)
        if family.name in sys.argv[2:]:
            samples.append({"name": sample.name, "labels": sample.labels, "value": sample.value})
print(json.dumps({"families": names, "samples": samples}))
