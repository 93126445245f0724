"""What README.md and docs/ show is true: commands parse, targets, files and settings exist.

Which of these commands also run, on a tiny model: test_smoke.py.
"""

import pathlib
import re
import shlex
import subprocess

import pytest

from tests import docs, test_smoke
from ttt_jax import config as config_lib
from ttt_jax.cli import main

COMMANDS = docs.ttt_jax_commands()


def test_every_command_is_shown():
  assert {command.split()[1] for command in COMMANDS} == set(main.VERBS)


@pytest.mark.parametrize('command', sorted(COMMANDS))
def test_commands_parse(command, monkeypatch):
  monkeypatch.chdir(docs.ROOT)
  args, overrides = main._parse(shlex.split(command)[1:])
  if hasattr(args, 'config'):
    config_lib.load(args.config or 'configs/demo.py', overrides)
  if args.command:  # what `supervise` starts
    assert args.command[0] == 'ttt-jax'
    main._parse(args.command[1:])


def test_the_smoke_run_runs_commands_as_they_are_shown():
  source = pathlib.Path(test_smoke.__file__).read_text()
  run = set(re.findall(r"run\('(ttt-jax [^']+)'", source))
  shown = {command.split()[1] for command in COMMANDS
           if command in {shlex.join(shlex.split(one)) for one in run}}
  assert shown >= {'prepare', 'inspect', 'train', 'evaluate', 'generate', 'score', 'report',
                   'status', 'export-hf'}


def test_make_targets_exist():
  makefile = (docs.ROOT / 'Makefile').read_text()
  found = {words[1] for _, words in docs.command_lines() if words[0] == 'make'}
  found |= {text.split()[1] for _, text in docs.in_backticks() if re.match(r'make [a-z]', text)}
  assert {'demo', 'test'} <= found
  missing = {one for one in found if not re.search(rf'^{one}:', makefile, re.M)}
  assert not missing


# Programs that a command line of the documentation may begin with, besides this package's.
PROGRAMS = {'ttt-jax', 'make', 'pip', 'git', 'cd', 'python', 'bash', 'tensorboard', 'open',
            'export', 'kubectl', 'sbatch', 'gcloud', 'scancel', 'squeue', 'source', 'kill',
            'docker', 'xpk', 'xprof'}


def test_command_lines_name_files_of_the_repository():
  for page, words in docs.command_lines():
    assert words[0] in PROGRAMS, f'{page}: {words}'
    if words[0] in ('python', 'bash'):
      file = (words[2].replace('.', '/') + '.py' if words[1] == '-m' else words[1])
      assert (docs.ROOT / file).is_file(), f'{page}: {file}'
    if words[0] == 'pip' and '-e' in words:
      for extra in re.findall(r'\[([\w,]+)\]', ' '.join(words)):
        for one in extra.split(','):
          assert f"'{one}': [" in (docs.ROOT / 'setup.py').read_text(), f'{page}: extra {one}'


SCRIPTS = sorted({' '.join(words[:3] if words[1] == '-m' else words[:2])
                  for _, words in docs.command_lines() if words[0] == 'python'})


@pytest.mark.parametrize('script', SCRIPTS)
def test_flags_of_scripts_exist(script):
  """Every --flag that is shown for a Python script stands in its source."""
  words = script.split()
  file = words[2].replace('.', '/') + '.py' if words[1] == '-m' else words[1]
  source = (docs.ROOT / file).read_text()
  for page, line in docs.command_lines():
    if ' '.join(line).startswith(script + ' '):
      for flag in re.findall(r'(?<=\s)--[a-z-]+', ' '.join(line)):
        assert f"'{flag}'" in source, f'{page}: {flag} of {script}'


FOLDERS = 'ttt_jax|tools|configs|launch|benchmarks|tests|docs|data|.ci'


def test_files_exist():
  found = [(page, text) for page, text in docs.in_backticks()
           if re.fullmatch(rf'({FOLDERS})/[\w./-]*\w/?', text)]
  assert found
  missing = [f'{page}: {text}' for page, text in found
             if not (docs.ROOT / text).exists() and not text.startswith('data/')]
  assert not missing


def test_settings_exist():
  """Every `group.name` of a group of the config; `group.py` and the like are files."""
  groups = config_lib.to_dict(config_lib.Config())
  groups = {name: value for name, value in groups.items() if isinstance(value, dict)}
  found = [(page, group, key) for page, text in docs.in_backticks()
           for group, key in re.findall(
               rf'^(?:--config\.)?({"|".join(groups)})\.(\w+)(?:[=.\s\[].*)?$', text)
           if not re.search(r'\.(py|json|md|html|jsonl|csv|bin|onnx)$', text)]
  assert found
  missing = [f'{page}: {group}.{key}' for page, group, key in found if key not in groups[group]
             and f'{group}.{key}' not in config_lib.RENAMED]
  assert not missing


def test_python_blocks_compile():
  for page, text in docs.blocks('python'):
    part_of_a_dict = re.match(r"'\w+': ", text)
    compile(f'{{{text}}}' if part_of_a_dict else text, page, 'exec')


@pytest.mark.parametrize('page, text', [
    pytest.param(page, text, id=page) for page, text in docs.blocks('python')
    if 'get_sweep' in text])
def test_sweeps_shown_are_sweeps(page, text, tmp_path):
  from ttt_jax.runs import sweep
  file = tmp_path / 'shown.py'
  header = '' if 'import sweep' in text else 'from ttt_jax.runs import sweep\n\n'
  file.write_text(header + text)
  assert len(sweep.load(file).members) > 1


def test_links_lead_somewhere():
  for page in docs.PAGES:
    for target in re.findall(r'\]\(([^)\s#]+)[^)]*\)', page.read_text(encoding='utf-8')):
      if not re.match(r'[a-z]+:', target):
        assert (page.parent / target).exists(), f'{docs.name(page)}: {target}'


def test_local_launcher_takes_the_flags_shown():
  for _, words in docs.command_lines():
    if words[:2] == ['bash', 'launch/local.sh']:
      args, _ = main._parse(['train', '--workdir', *words[3:]])
      assert args.verb == 'train'


def test_tpu_vm_commands_are_known():
  """With --dry-run the script prints its gcloud calls."""
  for page, words in docs.command_lines():
    if words[:2] == ['bash', 'launch/tpu_vm.sh']:
      done = subprocess.run(['bash', words[1], '--dry-run', *words[2:]], cwd=docs.ROOT, text=True,
                            capture_output=True, check=False)
      assert done.returncode == 0, f'{page}: {words}: {done.stderr}'
