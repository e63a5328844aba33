#!/usr/bin/env bash
# Azurite, a stand-in for Azure Blob that its maker keeps, for the tests of artifact stores. This is the last version that
# Debian 12's Node runs.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

if command -v azurite-blob >/dev/null; then exit 0; fi
command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null
for _ in 1 2 3; do npm install --global --no-fund --no-audit --silent azurite@3.35.0 && break; done
command -v azurite-blob >/dev/null
