"""IFEval: whether an answer follows instructions that a program can check (arXiv 2311.07911).

The rules are those of the published checks, in our own code. Three of them call on models of
language that are not bundled here and are approximated: sentences end at . ! ? before a capital
letter or the end, a language is told by its script and its most frequent words, and words in
capitals are split at spaces and punctuation. An answer is checked strictly as it is, and loosely in
eight forms: without its first line, its last line, and asterisks.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
import json
import re
from typing import Any, NamedTuple

from ttt_jax.errors import UserError


class Instruction(NamedTuple):
  """One instruction: its id, such as 'keywords:existence', and its arguments."""
  name: str
  arguments: Mapping[str, Any]


def instructions(row: Mapping[str, Any], where: str) -> list[Instruction]:
  """The instructions of a row with instruction_id_list and kwargs.

  Args:
    row: of IFEval; kwargs is a list of objects, or of objects as JSON.
    where: 'file:line', for errors.

  Raises:
    UserError: another form, or an instruction that is not known.
  """
  names, arguments = row.get('instruction_id_list'), row.get('kwargs')
  if isinstance(arguments, str):
    try:
      arguments = json.loads(arguments)
    except ValueError as error:
      raise UserError(f'{where}: kwargs is not JSON ({error}).') from error
  if not isinstance(names, list) or not isinstance(arguments, list) or not names or (
      len(names) != len(arguments)):
    raise UserError(f'{where}: a row of IFEval needs instruction_id_list and kwargs, lists of the '
                    'same length.')
  out = []
  for name, given in zip(names, arguments):
    if name not in CHECKS:
      raise UserError(f'{where}: the instruction {name!r} is not known; IFEval has '
                      f'{", ".join(CHECKS)}.')
    if isinstance(given, str):
      given = json.loads(given)
    out.append(Instruction(name, {key: value for key, value in (given or {}).items()
                                  if value is not None}))
  for one in out:
    try:
      CHECKS[one.name]('Any answer.', **_accepted(one))
    except (TypeError, ValueError, KeyError) as error:
      raise UserError(f'{where}: the arguments of {one.name} are {dict(one.arguments)}, which it '
                      f'cannot use ({error}).') from error
  return out


def followed(given: Sequence[Instruction], answer: str) -> tuple[list[bool], list[bool]]:
  """(strictly, loosely) for each instruction whether an answer follows it."""
  lines = answer.split('\n')
  forms = [answer, *('\n'.join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
  forms += [form.replace('*', '') for form in forms]
  def holds(one: Instruction, text: str) -> bool:
    return bool(text.strip()) and bool(CHECKS[one.name](text, **_accepted(one)))
  return ([holds(one, answer) for one in given],
          [any(holds(one, form) for form in forms) for one in given])


def _accepted(one: Instruction) -> dict[str, Any]:
  """The arguments that the check has; rows hold those of all checks."""
  names = inspect.signature(CHECKS[one.name]).parameters
  return {key: value for key, value in one.arguments.items() if key in names}


def _compared(count: int, relation: str, limit: float) -> bool:
  if relation not in ('less than', 'at least'):
    raise ValueError(f'relation {relation!r}')
  return count < limit if relation == 'less than' else count >= limit


# -- checks ---------------------------------------------------------------------------------


def _keywords(text: str, keywords: list[str]) -> bool:
  return all(re.search(word, text, re.I) for word in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: float, relation: str) -> bool:
  return _compared(len(re.findall(keyword, text, re.I)), relation, frequency)


def _forbidden_words(text: str, forbidden_words: list[str]) -> bool:
  return not any(re.search(rf'\b{word}\b', text, re.I) for word in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: float, let_relation: str) -> bool:
  return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def _sentences(text: str, num_sentences: float, relation: str) -> bool:
  found = re.split(r'(?<=[.!?])["\')\]]*\s+(?=["\'(\[]*[A-Z0-9])', ' '.join(text.split()))
  return _compared(len([one for one in found if re.search(r'\w', one)]), relation, num_sentences)


def _words(text: str, num_words: float, relation: str) -> bool:
  return _compared(len(re.findall(r'\w+', text)), relation, num_words)


def _paragraphs(text: str, num_paragraphs: float) -> bool:
  found = [one.strip() for one in re.split(r'\s?\*\*\*\s?', text)]
  inner = found[1:-1]
  ends = [found[0], *found[1:][-1:]]
  return all(inner) and len(inner) + sum(map(bool, ends)) == num_paragraphs


def _first_word(text: str, num_paragraphs: float, nth_paragraph: float, first_word: str) -> bool:
  found = text.split('\n\n')
  count = sum(bool(one.strip()) for one in found)
  if not 1 <= nth_paragraph <= count or not (paragraph := found[int(nth_paragraph) - 1].strip()):
    return False
  first = re.split(r'[.,?!\'"]', paragraph.split()[0].lstrip('\'"'))[0].lower()
  return count == num_paragraphs and first == first_word.lower()


def _placeholders(text: str, num_placeholders: float) -> bool:
  return len(re.findall(r'\[.*?\]', text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
  marker = postscript_marker.strip()
  pattern = {'P.P.S': r'p\.\s?p\.\s?s', 'P.S.': r'p\.\s?s\.'}.get(marker, re.escape(marker.lower()))
  return bool(re.search(pattern, text.lower()))


def _bullets(text: str, num_bullets: float) -> bool:
  return len(re.findall(r'^\s*(?:\*[^*]|-).*$', text, re.M)) == num_bullets


def _constrained(text: str) -> bool:
  return any(f'My answer is {word}.' in text for word in ('yes', 'no', 'maybe'))


def _highlights(text: str, num_highlights: float) -> bool:
  single = [one for one in re.findall(r'\*[^\n*]*\*', text) if one.strip('*').strip()]
  double = [one for one in re.findall(r'\*\*[^\n*]*\*\*', text) if one[2:-2].strip()]
  return len(single) + len(double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: float) -> bool:
  return len(re.split(rf'\s?{section_spliter}\s?\d+\s?', text)) - 1 >= num_sections


def _json(text: str) -> bool:
  text = text.strip()
  for mark in ('```json', '```Json', '```JSON', '```'):
    text = text.removeprefix(mark)
  try:
    json.loads(text.removesuffix('```').strip())
  except (ValueError, RecursionError):
    return False
  return True


def _title(text: str) -> bool:
  return any(one.lstrip('<').rstrip('>').strip() for one in re.findall(r'<<[^\n]+>>', text))


def _two_answers(text: str) -> bool:
  found = [one.strip() for one in text.split('******')]
  kept = [one for one in found if one]
  return all(found[1:-1]) and len(kept) == 2 and kept[0] != kept[1]


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
  return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(text: str, end_phrase: str) -> bool:
  return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_words(text: str, capital_frequency: float, capital_relation: str) -> bool:
  found = re.findall(r"\w+(?:-\w+)*", text)
  return _compared(sum(word.isupper() for word in found), capital_relation, capital_frequency)


def _capital(text: str) -> bool:
  return text.isupper() and _language(text, 'en')


def _lower(text: str) -> bool:
  return text.islower() and _language(text, 'en')


def _no_comma(text: str) -> bool:
  return ',' not in text


def _quoted(text: str) -> bool:
  text = text.strip()
  return len(text) > 1 and text[0] == text[-1] == '"'


# Scripts that tell a language, or the few that share one; and frequent words of Latin scripts.
_SCRIPTS = {language: letters for languages, letters in {
    'ar fa ur': '\u0600-\u06ff', 'he': '\u0590-\u05ff', 'el': '\u0370-\u03ff',
    'ru bg uk': '\u0400-\u04ff', 'hi mr ne': '\u0900-\u097f', 'bn': '\u0980-\u09ff',
    'pa': '\u0a00-\u0a7f', 'gu': '\u0a80-\u0aff', 'ta': '\u0b80-\u0bff', 'te': '\u0c00-\u0c7f',
    'kn': '\u0c80-\u0cff', 'ml': '\u0d00-\u0d7f', 'th': '\u0e00-\u0e7f', 'ko': '\uac00-\ud7af',
    'ja': '\u3040-\u30ff', 'zh': '\u4e00-\u9fff'}.items() for language in languages.split()}
_FREQUENT = {
    'en': 'the of and to in is that for it with as was on are you this be have not',
    'de': 'der die und das ist nicht ein eine zu den mit sich auf für im dem ich es',
    'fr': 'le la les et des est un une que dans pour qui pas sur du vous je il en',
    'es': 'el la los las de que y en un una por con para es no se del lo',
    'it': 'il la di che e un una per non sono in con del della le si è gli',
    'pt': 'o a os as de que e em um uma para com não por se do da é no',
    'nl': 'de het een en van is dat niet op te in voor zijn met die aan ik',
    'pl': 'i w na z do nie że się to jest o jak po dla przez',
    'vi': 'và của là có không được trong cho một các người với này những',
    'fi': 'ja on ei se että oli hän mutta kun niin ovat joka myös',
    'sv': 'och att det som en på är av för med till den inte ett',
    'tr': 've bir bu için ile de da olarak çok en gibi daha olan',
    'sw': 'na ya wa kwa ni katika la za kuwa hii yake cha'}


@functools.cache
def _frequent(language: str) -> frozenset[str]:
  return frozenset(_FREQUENT[language].split())


def _language(text: str, language: str) -> bool:
  language = language.partition('-')[0]
  letters = [c for c in text if c.isalpha()]
  if not letters:
    return True  # as published: a text whose language cannot be told follows
  if language in _SCRIPTS:
    return 2 * len(re.findall(f'[{_SCRIPTS[language]}]', text)) > len(letters)
  if language not in _FREQUENT:
    return True
  found = re.findall(r'\w+', text.lower())
  scores = {one: sum(word in _frequent(one) for word in found) for one in _FREQUENT}
  latin = sum(c < '\u0250' or '\u1e00' <= c <= '\u1eff' for c in letters)
  return 2 * latin > len(letters) and scores[language] == max(scores.values())


CHECKS: dict[str, Callable[..., bool]] = {
    'keywords:existence': _keywords,
    'keywords:frequency': _keyword_frequency,
    'keywords:forbidden_words': _forbidden_words,
    'keywords:letter_frequency': _letter_frequency,
    'language:response_language': _language,
    'length_constraints:number_sentences': _sentences,
    'length_constraints:number_paragraphs': _paragraphs,
    'length_constraints:number_words': _words,
    'length_constraints:nth_paragraph_first_word': _first_word,
    'detectable_content:number_placeholders': _placeholders,
    'detectable_content:postscript': _postscript,
    'detectable_format:number_bullet_lists': _bullets,
    'detectable_format:constrained_response': _constrained,
    'detectable_format:number_highlighted_sections': _highlights,
    'detectable_format:multiple_sections': _sections,
    'detectable_format:json_format': _json,
    'detectable_format:title': _title,
    'combination:two_responses': _two_answers,
    'combination:repeat_prompt': _repeats_prompt,
    'startend:end_checker': _ends,
    'change_case:capital_word_frequency': _capital_words,
    'change_case:english_capital': _capital,
    'change_case:english_lowercase': _lower,
    'punctuation:no_comma': _no_comma,
    'startend:quotation': _quoted,
}
