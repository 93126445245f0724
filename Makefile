# make demo         the demo: corpus, training, evaluation and a report (about 11 minutes on 2 cores)
# make paper        the paper's comparison in miniature: 7 methods, 3 seeds (hours; resumes)
# make serve        talk to the demo's model at http://127.0.0.1:8000 (after make demo; SERVE='--port 9000')
# make smoke        one tiny run through every command of ttt-jax (about a minute on 2 cores)
# make test         the test suite, without the tests marked slow
# make test-slow    the tests marked slow
# make test-torch   weights, PyTorch module and tokenizers against torch and transformers (installs them)
# make test-recipes docs/recipes.md on tiny corpora (a minute or two)
# make test-slurm   two nodes of a SLURM installation (5 to 15 minutes)
# make test-storage workdirs and data in buckets, on a GCS emulator and an S3 server (a few minutes)
# make test-ray     prepare on two Ray nodes, and without a common disk; one is killed (installs ray; two minutes)
# make test-processes import and export by two processes, one of which is killed or fails (a few minutes)
# make test-profile two processes that are traced or cannot save, and xprof on a trace (a few minutes)
# make test-serve   the server: 1,000 malformed requests, memory over 2,000, SIGTERM (a few minutes)
# make fuzz         damages files of every kind and opens them (FUZZ='--seconds 600 --seed 3')
# make full-size    import, one step and export at 0.5B and 1.5B (about 10 minutes, 25 GB of disk)
# make faults       kills runs, corrupts checkpoints, fills a disk (about 15 minutes)
# make together     several processes in one workdir, 30 rounds each (about 15 minutes)
# make test-disks   every command on full, read-only and forbidden disks (about 10 minutes; as root)
# make lint         ruff
# make types        pyright
# make docs         builds the documentation in build/site; warnings are errors
# make clean        removes what the demo, the tests and the builds wrote, file by file, if unchanged
# make distclean    removes .venv, too
#
# Targets that need packages install them into .venv. PYTHON=/path/to/python3.11 chooses the Python
# that .venv is made with. Compiled programs of the tests are cached in ~/.cache/ttt_jax_tests (up to
# 2 GB); JAX_COMPILATION_CACHE_DIR names another folder.

PYTEST = .venv/bin/python -m pytest -q
# One process per core up to four: each runs JAX on several threads and holds about 1 GB. Tests of a
# file run in one process, so that they share its fixtures, until a process has nothing left to do.
WORKERS = -n auto --maxprocesses=4 --dist=worksteal
PYTHON_HERE = $(or $(PYTHON),python3)
export HF_HUB_OFFLINE = 1
export ORT_DISABLE_TELEMETRY = 1

.PHONY: demo paper serve smoke test test-slow test-torch test-recipes test-slurm test-ray test-serve test-storage test-processes test-profile full-size faults fuzz together test-disks lint types docs clean distclean

demo: .venv/demo.installed
	bash launch/demo.sh

paper: .venv/demo.installed
	bash launch/paper.sh

serve: .venv/serve.installed
	.venv/bin/ttt-jax serve --workdir demo $(SERVE)

smoke: .venv/test.installed
	$(PYTEST) tests/test_smoke.py

test: .venv/test.installed
	$(PYTEST) $(WORKERS)

test-slow: .venv/test.installed
	$(PYTEST) -m slow

test-torch: .venv/test.installed .venv/torch.installed
	$(PYTEST) tests/hf tests/tokens tests/test_api.py
	$(PYTEST) -s -m slow tests/hf/test_torch_published.py

test-slurm: .venv/test.installed
	$(PYTEST) -m slow -s tests/launch/test_slurm.py

test-ray: .venv/test.installed .venv/ray.installed .venv/storage.installed
	$(PYTEST) -m slow tests/data/prepare/test_ray.py tests/data/prepare/test_team.py \
	  tests/data/prepare/test_apart.py

test-recipes: .venv/test.installed
	$(PYTEST) -m slow tests/test_recipes.py

test-serve: .venv/test.installed
	$(PYTEST) -m slow tests/serve

test-storage: .venv/test.installed .venv/storage.installed
	$(PYTEST) -m storage

test-processes: .venv/test.installed
	$(PYTEST) -m "slow and not storage" tests/hf/test_processes.py

test-profile: .venv/test.installed .venv/profile.installed
	$(PYTEST) -m slow tests/train/test_profiling.py tests/train/test_agreement.py

fuzz: .venv/test.installed
	.venv/bin/python tools/fuzz.py $(FUZZ)

full-size: .venv/test.installed
	.venv/bin/python -m benchmarks.convert --json full-size.json

faults: .venv/test.installed
	.venv/bin/python tools/faults.py --out faults --json faults.json

together: .venv/test.installed
	.venv/bin/python tools/together.py --out together --json together.json

test-disks: .venv/test.installed
	.venv/bin/python tools/disks.py --out disks --json disks.json

lint: .venv/test.installed
	.venv/bin/ruff check .

types: .venv/test.installed
	.venv/bin/pyright --pythonpath .venv/bin/python

docs: .venv/docs.installed
	.venv/bin/python docs/config_reference.py --check
	.venv/bin/python docs/pictures.py --check
	.venv/bin/mkdocs build --strict

.venv/%.installed: setup.py constraints.txt launch/install.sh
	PYTHON=$(PYTHON) bash launch/install.sh $*
	@touch $@

clean:
	@if [ -x .venv/bin/python ]; then .venv/bin/python -B tools/clean.py; else $(PYTHON_HERE) -B tools/clean.py; fi

distclean: clean
	rm -rf .venv *.egg-info
