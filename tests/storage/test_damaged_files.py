"""A short selection of `make fuzz`: damaged files are read or named in a sentence, never a
traceback, and no file chooses the size of an allocation."""

import pytest

from tools import fuzz, fuzz_scenes

CASES = 40


@pytest.fixture(scope='module')
def campaign():
  # The address space of a test process is not limited: other tests share it.
  with fuzz.Campaign(fuzz_scenes.SCENES, seed=0, limit=False) as campaign:
    yield campaign


@pytest.mark.parametrize('kind', fuzz_scenes.SCENES)
def test_damage_is_a_sentence(campaign, kind):
  outcomes = {campaign.run(kind, number) for number in range(CASES)}
  assert not campaign.failures, '\n'.join(campaign.failures)
  assert outcomes & {fuzz.SENTENCE, fuzz.READ}
