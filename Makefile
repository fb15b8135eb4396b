# `make demo` and `make test` do everything; both set up .venv first, with no more than they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test slow readers chaos check audit format clean
setup: .venv/installed-dev

# torch first: one package that asked for a looser torch would otherwise pull in gigabytes.
.venv/installed-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo]'
	touch $@

.venv/installed-dev: .venv/installed-demo
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed-demo
	$(BIN)/python examples/sample_photos.py out/photos
	$(BIN)/maskmill generate out/photos --out out/corpus --config configs/nano.yaml
	$(BIN)/maskmill verify out/corpus
	$(BIN)/maskmill gallery out/corpus --out out/gallery.html
	@echo "Open out/gallery.html in a browser."

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# The tools that read a corpus, pandas among them, in an environment on top of .venv.
readers: setup
	$(BIN)/python -m venv .venv/readers
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$(echo .venv/readers/lib/*/site-packages)/base.pth
	.venv/readers/bin/pip install --quiet 'datasets>=4.0' 'fiftyone>=1.22' 'pandas>=2.2'
	.venv/readers/bin/python -m pytest -q -m 'slow or not slow' tests/docs/test_consumers.py

# Kills, browsers, compilers, training: all that `make test` leaves out. Wants Chromium (Debian: apt install
# chromium chromium-driver).
slow: setup readers
	$(BIN)/python -m pytest -q -m slow

# Kills, full disks and jumping clocks: about twenty minutes on two cores, and a table at the end.
chaos: setup
	$(BIN)/python -m pytest -q -m slow tests/chaos

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Known vulnerabilities of what .venv holds, version by version; asks PyPI. +cpu is no version that it knows.
audit: setup
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > .venv/audit/packages.txt
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement .venv/audit/packages.txt

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf out .mypy_cache .ruff_cache .pytest_cache
