"""Canaries: photographs planted in the training of any pipeline, so that exact tests apply to it.

    python -m memsub_extra.canaries plant candidates ordinary --out canaries.json
    python -m memsub_extra.canaries train sd14 canaries.json --out runs/canaries
    python -m memsub_extra.canaries test runs/canaries

docs/canaries.md explains the steps.
"""
