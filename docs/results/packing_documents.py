"""Cuts a corpus of JSON lines into documents of two sentences, so that their pairs are short.

python docs/results/packing_documents.py IN.jsonl.gz [IN.jsonl.gz ...] OUT.jsonl
"""

import gzip
import json
import sys

import sentencex

*sources, target = sys.argv[1:]
with open(target, "w", encoding="utf-8") as out:
    for source in sources:
        for line in gzip.open(source, "rt", encoding="utf-8"):
            document = json.loads(line)
            for paragraph in document["text"].split("\n"):
                sentences = [s.strip() for s in sentencex.segment("en", paragraph) if s.strip()]
                for i in range(0, len(sentences) - 1, 2):
                    out.write(json.dumps({"text": " ".join(sentences[i : i + 2])}) + "\n")
