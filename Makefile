# make demo        the whole walk: speech, training, scores, a page; about 26 minutes on 2 cores
# make test        the tests (about 13 minutes on 2 cores)
# make test-slow   the tests that take long
# make test-torch  weights, PyTorch module and tokenizers beside torch and transformers (installs them)
# make test-slurm  two nodes of a real SLURM, where there is one (five to fifteen minutes)
# make full-size  weights of 0.5B and 1.5B in, a step, and out again (about ten minutes, 25 GB)
# make faults    kill runs, damage their checkpoints, fill their disk (about 15 minutes)
# make lint        ruff
# make clean       remove what the demo and the tests wrote; distclean removes .venv, too
#
# PYTHON=/path/to/python3.11 chooses the Python that .venv is made with.

PYTEST = .venv/bin/python -m pytest -q
# One process per core up to four: each runs JAX on several threads and holds about 1 GB.
WORKERS = -n auto --maxprocesses=4 --dist=loadfile
export HF_HUB_OFFLINE = 1
export ORT_DISABLE_TELEMETRY = 1

.PHONY: demo test test-slow test-torch test-slurm full-size faults lint clean distclean

demo: .venv/demo.installed
	bash launch/demo.sh

test: .venv/test.installed
	$(PYTEST) $(WORKERS)

test-slow: .venv/test.installed
	$(PYTEST) -m slow

test-torch: .venv/test.installed .venv/torch.installed
	$(PYTEST) tests/hf tests/text tests/test_api.py

test-slurm: .venv/test.installed
	$(PYTEST) -m slow -s tests/launch/test_slurm.py

full-size: .venv/test.installed
	.venv/bin/python -m benchmarks.convert --json full-size.json

faults: .venv/test.installed
	.venv/bin/python tools/faults.py --out faults --json faults.json

lint: .venv/test.installed
	.venv/bin/ruff check .

.venv/%.installed: setup.py constraints.txt launch/install.sh
	PYTHON=$(PYTHON) bash launch/install.sh $*
	@touch $@

clean:
	rm -rf demo faults faults.json full-size.json build dist .pytest_cache .hypothesis .ruff_cache
	find ttt_jax tests tools configs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv *.egg-info
