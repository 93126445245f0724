'use strict';
// The page: a client of WS /v1/realtime. Sound is 24 kHz mono PCM16 both ways.

const RATE = 24000;
const WORKLETS = /*WORKLETS*/'';
const KEPT_TURNS = 100;        // older turns leave the page
const MIC_IDLE = 60000;        // ms after which an unused microphone is closed
const $ = (id) => document.getElementById(id);

const state = {
  socket: null, key: '', model: '', tries: 0, handsFree: false, holding: false,
  sent: [],          // pieces of the microphone that were sent, newest last
  sentSamples: 0,    // since the session began
  turns: new Map(),  // id of an item or a response -> turn
  answer: null,      // the turn that is being generated
  playing: null,     // the turn that is heard
  ended: 0,          // when the user's turn ended, performance.now()
};

// -- the list of turns ------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'class') made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function newTurn(role, text) {
  const said = element('p', {class: 'said'}, text);
  const item = element('li', {class: `turn ${role}`},
    element('span', {class: 'who'}, role === 'user' ? 'You' : state.model || 'Model'), said);
  $('turns').append(item);
  while ($('turns').children.length > KEPT_TURNS) $('turns').firstElementChild.remove();
  const turn = {role, item, said, text, pieces: [], samples: 0, blocks: new Map()};
  follow();
  return turn;
}

function follow() {
  const main = document.querySelector('main');
  main.scrollTop = main.scrollHeight;
}

function setText(turn, text, unknown = false) {
  turn.text = text;
  turn.said.textContent = text;
  turn.said.classList.toggle('unknown', unknown);
  follow();
}

function addPlayer(turn, label) {
  if (!turn.pieces.length || turn.player) return;
  const url = URL.createObjectURL(wav(turn.pieces));
  turn.player = element('audio', {controls: '', preload: 'metadata', src: url, 'aria-label': label});
  turn.item.append(turn.player);
  follow();
}

function wav(pieces) {
  const bytes = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const word = (at, text) => [...text].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
  word(0, 'RIFF'); head.setUint32(4, 36 + bytes, true); word(8, 'WAVEfmt ');
  head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
  head.setUint32(24, RATE, true); head.setUint32(28, 2 * RATE, true);
  head.setUint16(32, 2, true); head.setUint16(34, 16, true);
  word(36, 'data'); head.setUint32(40, bytes, true);
  return new Blob([head, ...pieces], {type: 'audio/wav'});
}

function fact(turn, name, value) {
  if (!turn.facts) {
    turn.facts = element('p', {class: 'facts'});
    turn.item.append(turn.facts);
  }
  let found = turn.facts.querySelector(`[data-name="${name}"]`);
  if (!found) {
    found = element('span', {'data-name': name}, `${name} `, element('b'));
    turn.facts.append(found);
  }
  found.querySelector('b').textContent = value;
}

const milliseconds = (value) => `${Math.round(value)} ms`;
const problem = (text) => { $('problem').textContent = text; };

// -- the diffusion ------------------------------------------------------------------------------

function drawBlock(turn, event) {
  if (!turn.diffusion) {
    turn.blocksBox = element('div', {class: 'blocks'});
    turn.diffusion = element('div', {
      class: 'diffusion', role: 'img', 'aria-label': 'audio tokens, coloured by the step that set them',
    }, turn.blocksBox, element('p', {class: 'legend'}, 'first step', element('i'), 'last step'));
    turn.item.append(turn.diffusion);
  }
  const name = `${event.span}.${event.block}`;
  let block = turn.blocks.get(name);
  if (!block) {
    block = element('div', {class: 'block open'});
    turn.blocks.set(name, block);
    turn.blocksBox.append(block);
  }
  while (block.children.length < event.codes.length) block.append(element('span', {class: 'cell'}));
  while (block.children.length > event.codes.length) block.lastElementChild.remove();
  const share = event.steps > 1 ? Math.min(1, Math.max(0, event.step - 1) / (event.steps - 1)) : 1;
  event.codes.forEach((code, i) => {
    const cell = block.children[i];
    if (code === -1 || cell.classList.contains('set')) return;
    cell.classList.add('set');
    cell.classList.toggle('late', share > 0.42);
    cell.classList.toggle('end', code < 0);
    cell.style.setProperty('--share', `${Math.round(100 * share)}%`);
    cell.textContent = code < 0 ? 'end' : String(code);
    cell.title = code < 0 ? `end of the speech, step ${event.step}` : `code ${code}, step ${event.step}`;
  });
  block.classList.toggle('open', event.codes.includes(-1));
  follow();
}

function endBlocks(turn) {
  for (const block of turn.blocks.values()) block.classList.remove('open');
}

// -- sound ----------------------------------------------------------------------------------------

const sound = {context: null, player: null, mic: null, closing: 0};

async function openContext(options) {
  const context = new AudioContext({latencyHint: 'interactive', ...options});
  const url = URL.createObjectURL(new Blob([WORKLETS], {type: 'text/javascript'}));
  try {
    await context.audioWorklet.addModule(url);
  } finally {
    URL.revokeObjectURL(url);
  }
  return context;
}

async function openPlayer() {
  if (!sound.opening) {
    sound.opening = (async () => {
      sound.context = await openContext({sampleRate: RATE});
      sound.player = new AudioWorkletNode(sound.context, 'player',
        {numberOfInputs: 0, outputChannelCount: [1]});
      sound.player.connect(sound.context.destination);
      sound.player.port.onmessage = ({data}) => played(data);
    })();
  }
  await sound.opening;
  if (sound.context.state !== 'running') await sound.context.resume();
}

function played(data) {
  const turn = state.turns.get(data.name);
  if (!turn) return;
  turn.playedSamples = data.played;
  if (data.kind === 'started' && turn.asked) {
    const delay = 1000 * (sound.context.outputLatency || sound.context.baseLatency || 0);
    turn.firstAudio = performance.now() - turn.asked + delay;
    fact(turn, 'first audio', milliseconds(turn.firstAudio));
  }
  if (data.kind === 'finished' || data.kind === 'stopped') {
    if (data.dry) fact(turn, 'gaps', milliseconds(1000 * data.dry / RATE));
    if (state.playing === turn) state.playing = null;
    buttons();
  }
}

async function openMic() {
  clearTimeout(sound.closing);
  if (sound.mic) return;
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error('this browser gives no microphone to pages that are not served over https or from localhost');
  }
  const stream = await navigator.mediaDevices.getUserMedia({audio: {
    channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: false}});
  let context, source;
  try {
    context = await openContext({sampleRate: RATE});
    source = context.createMediaStreamSource(stream);
  } catch (error) {  // Firefox opens a microphone at its own rate only
    if (context) await context.close();
    context = await openContext({});
    source = context.createMediaStreamSource(stream);
  }
  const node = new AudioWorkletNode(context, 'recorder', {numberOfOutputs: 0});
  node.port.onmessage = ({data}) => heard(data);
  source.connect(node);
  sound.mic = {stream, context};
}

function closeMic() {
  if (!sound.mic || state.handsFree || state.holding) return;
  sound.mic.stream.getTracks().forEach((track) => track.stop());
  sound.mic.context.close();
  sound.mic = null;
  meter(0);
}

function meter(level) {
  document.querySelector('#meter i').style.transform = `scaleX(${Math.min(1, level)})`;
}

function heard({pcm, peak}) {
  meter(state.handsFree || state.holding ? Math.sqrt(peak) : 0);
  if (state.handsFree || state.holding) sendSound(new Int16Array(pcm));
}

function sendSound(samples) {
  if (!send({type: 'input_audio_buffer.append', audio: base64(new Uint8Array(samples.buffer))})) return;
  state.sent.push(samples);
  state.sentSamples += samples.length;
  while (state.sent.length > 3000) state.sent.shift();  // two minutes
}

function sentBetween(first, last) {
  // Samples first..last since the session began, as far as they are kept.
  const out = [];
  let at = state.sentSamples - state.sent.reduce((sum, piece) => sum + piece.length, 0);
  for (const piece of state.sent) {
    const a = Math.max(0, first - at), b = Math.min(piece.length, last - at);
    if (a < b) out.push(piece.slice(a, b));
    at += piece.length;
  }
  return out;
}

function base64(bytes) {
  let text = '';
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

function fromBase64(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out.buffer;
}

// -- the connection ----------------------------------------------------------------------------

function connection(text, kind) {
  $('connection').textContent = text;
  $('connection').dataset.state = kind;
  buttons();
}

async function start() {
  connection('connecting', 'off');
  try {
    const response = await fetch('v1/models', state.key
      ? {headers: {Authorization: `Bearer ${state.key}`}} : {});
    $('key-form').hidden = response.status !== 401;
    if (response.status === 401) {
      connection('needs a key', 'off');
      problem(state.key ? 'The server does not accept this key.' : '');
      $('key').focus();
      return;
    }
    state.model = (await response.json()).data[0].id;
    $('model').textContent = state.model;
    document.title = `Talk to ${state.model}`;
  } catch {
    return again();
  }
  const address = new URL('v1/realtime', location.href);
  address.protocol = address.protocol.replace('http', 'ws');
  const protocols = ['realtime'];
  if (state.key) protocols.push(`openai-insecure-api-key.${state.key}`);
  const socket = new WebSocket(address, protocols);
  state.socket = socket;
  socket.onopen = () => { state.tries = 0; connection('connected', 'on'); configure(); };
  socket.onmessage = ({data}) => receive(JSON.parse(data));
  socket.onclose = () => { if (state.socket === socket) again(); };
}

function again() {
  state.socket = null;
  finishAnswer('connection lost');
  connection('connection lost, trying again', 'lost');
  state.sent = [];
  state.sentSamples = 0;
  setTimeout(start, Math.min(15000, 500 * 2 ** state.tries++));
}

function send(event) {
  if (!state.socket || state.socket.readyState !== WebSocket.OPEN) return false;
  state.socket.send(JSON.stringify(event));
  return true;
}

const number = (id) => ($(id).value === '' ? null : Number($(id).value));

function configure() {
  const sampling = {temperature: number('temperature'), audio_temperature: number('audio_temperature')};
  if (number('steps') !== null) sampling.steps = number('steps');
  send({type: 'session.update', session: {
    type: 'realtime', instructions: $('instructions').value.trim(),
    output_modalities: [$('voice').checked ? 'audio' : 'text'],
    max_output_tokens: number('max_output') ?? 'inf',
    audio: {input: {
      transcription: $('transcribe').checked ? {model: state.model} : null,
      turn_detection: state.handsFree
        ? {type: 'server_vad', silence_duration_ms: number('silence') ?? 500} : null}},
    ttt: {block_events: $('watch').checked, history_turns: number('history') ?? state.history, sampling}}});
}

// -- events of the server -------------------------------------------------------------------------

const handlers = {
  'session.created': ({session}) => {  // the server's default, until another number is entered
    state.history = session.ttt.history_turns;
    $('history').placeholder = String(state.history ?? 'all');
  },
  'error': ({error}) => {
    problem(error.message);
    const waiting = state.waiting;
    if (waiting && !state.answer) { waiting.item.remove(); state.waiting = null; }
  },
  'input_audio_buffer.speech_started': (event) => {
    interrupt(false);
    const turn = newTurn('user', '');
    setText(turn, 'listening…', true);
    turn.first = event.audio_start_ms * RATE / 1000;
    state.turns.set(event.item_id, turn);
  },
  'input_audio_buffer.speech_stopped': (event) => {
    const turn = state.turns.get(event.item_id);
    state.ended = performance.now();
    if (!turn) return;
    turn.pieces = sentBetween(turn.first, event.audio_end_ms * RATE / 1000);
    setText(turn, $('transcribe').checked ? '…' : 'spoken', true);
    addPlayer(turn, 'what you said');
  },
  'input_audio_buffer.committed': ({item_id}) => {
    if (state.turns.has(item_id)) return;
    const turn = state.waiting || newTurn('user', '');
    state.waiting = null;
    state.turns.set(item_id, turn);
  },
  'conversation.item.input_audio_transcription.delta': ({item_id, delta}) => {
    const turn = state.turns.get(item_id);
    if (turn) setText(turn, (turn.heard = (turn.heard || '') + delta).trimStart());
  },
  'conversation.item.input_audio_transcription.completed': ({item_id, transcript}) => {
    const turn = state.turns.get(item_id);
    if (turn) setText(turn, transcript || 'nothing understood', !transcript);
  },
  'conversation.item.input_audio_transcription.failed': ({item_id, error}) => {
    const turn = state.turns.get(item_id);
    if (turn) setText(turn, 'spoken', true);
    problem(error.message);
  },
  'response.created': ({response}) => {
    const turn = newTurn('model', '');
    setText(turn, '…', true);
    turn.name = response.id;
    turn.asked = state.ended || performance.now();
    turn.created = performance.now();
    state.ended = 0;
    state.answer = turn;
    state.turns.set(response.id, turn);
    if (response.output_modalities.includes('audio') && sound.player) {
      sound.player.port.postMessage({kind: 'begin', name: response.id});
    }
    buttons();
  },
  'response.output_item.added': ({response_id, item}) => {
    const turn = state.turns.get(response_id);
    if (turn) { turn.itemId = item.id; state.turns.set(item.id, turn); }
  },
  'response.output_audio_transcript.delta': (event) => addText(event),
  'response.output_text.delta': (event) => addText(event),
  'response.output_audio.delta': ({response_id, delta}) => {
    const turn = state.turns.get(response_id), pcm = fromBase64(delta);
    if (!turn) return;
    turn.pieces.push(new Int16Array(pcm.slice(0)));
    turn.samples += pcm.byteLength / 2;
    if (turn.text === '…') setText(turn, '');
    state.playing = turn;
    if (sound.player) sound.player.port.postMessage({kind: 'push', name: response_id, pcm}, [pcm]);
  },
  'ttt.block': (event) => {
    const turn = state.turns.get(event.response_id);
    if (turn) drawBlock(turn, event);
  },
  'response.done': ({response}) => {
    const turn = state.turns.get(response.id);
    if (!turn) return;
    const seconds = turn.samples / RATE;
    endBlocks(turn);
    if (seconds) {
      fact(turn, 'real-time factor', ((performance.now() - turn.created) / 1000 / seconds).toFixed(2));
      fact(turn, 'sound', `${seconds.toFixed(1)} s`);
    } else {
      fact(turn, 'answered in', milliseconds(performance.now() - turn.asked));
    }
    if (turn.text === '…') setText(turn, '');
    const details = response.status_details || {};
    if (response.status === 'cancelled') fact(turn, 'ended', 'interrupted');
    if (response.status === 'incomplete') fact(turn, 'ended', 'at the limit of tokens');
    if (response.status === 'failed') {
      problem(details.error.message);
      if (!turn.text && !seconds) turn.item.remove();
    }
    if (state.answer === turn) state.answer = null;
    if (sound.player) sound.player.port.postMessage({kind: 'end', name: response.id});
    addPlayer(turn, 'the answer');
    if (turn.text) $('announce').textContent = `${state.model}: ${turn.text}`;
    buttons();
  },
};

function addText({response_id, delta}) {
  const turn = state.turns.get(response_id);
  if (turn) setText(turn, turn.text === '…' ? delta.trimStart() : turn.text + delta);
}

function receive(event) {
  handlers[event.type]?.(event);
}

function finishAnswer(why) {
  const turn = state.answer;
  state.answer = null;
  if (!turn) return;
  endBlocks(turn);
  fact(turn, 'ended', why);
  addPlayer(turn, 'the answer');
}

// -- turns of the user ------------------------------------------------------------------------------

function interrupt(cancel) {
  // Stop what is heard; the server forgets what was not.
  if (cancel && state.answer) send({type: 'response.cancel'});
  const turn = state.playing;
  if (!turn || !sound.player) return;
  sound.player.port.postMessage({kind: 'stop', name: turn.name});
  state.playing = null;
  if (turn.itemId && turn.samples) {
    const heardMs = Math.min(turn.playedSamples || 0, turn.samples) * 1000 / RATE;
    send({type: 'conversation.item.truncate', item_id: turn.itemId, content_index: 0,
      audio_end_ms: Math.floor(heardMs)});
  }
}

async function ready(needsMic) {
  problem('');
  try {
    await openPlayer();
    if (needsMic) await openMic();
    return true;
  } catch (error) {
    problem(`No microphone: ${error.message}. Type a message or send a recording.`);
    return false;
  }
}

async function hold() {
  if (state.holding || state.handsFree || !state.socket) return;
  state.holding = true;
  $('hold').classList.add('on');
  $('hold').querySelector('span').textContent = 'Listening, release to send';
  if (!await ready(true)) return release(true);
  if (!state.holding) return;  // released while the browser asked for permission
  interrupt(true);
  send({type: 'input_audio_buffer.clear'});
  state.holdFrom = state.sentSamples;
}

function release(nothing = false) {
  if (!state.holding) return;
  state.holding = false;
  $('hold').classList.remove('on');
  $('hold').querySelector('span').textContent = 'Hold to talk';
  meter(0);
  clearTimeout(sound.closing);
  sound.closing = setTimeout(closeMic, MIC_IDLE);
  if (nothing || state.holdFrom === undefined) return;
  const pieces = sentBetween(state.holdFrom, state.sentSamples);
  state.holdFrom = undefined;
  if (pieces.reduce((sum, piece) => sum + piece.length, 0) < 0.2 * RATE) {
    problem('That was too short: keep the button or the space bar pressed while you speak.');
    return;
  }
  spoken(pieces);
}

function spoken(pieces) {
  const turn = newTurn('user', '');
  setText(turn, $('transcribe').checked ? '…' : 'spoken', true);
  turn.pieces = pieces;
  addPlayer(turn, 'what you said');
  state.waiting = turn;
  state.ended = performance.now();
  send({type: 'input_audio_buffer.commit'});
  send({type: 'response.create'});
}

async function toggleHandsFree() {
  if (!state.handsFree && !await ready(true)) return;
  state.handsFree = !state.handsFree;
  $('hands-free').setAttribute('aria-pressed', String(state.handsFree));
  $('announce').textContent = state.handsFree ? 'Hands-free: just speak.' : 'Hands-free is off.';
  configure();
  send({type: 'input_audio_buffer.clear'});
  if (!state.handsFree) closeMic();
  buttons();
}

async function typed(text) {
  await ready(false);
  interrupt(true);
  newTurn('user', text);
  state.ended = performance.now();
  send({type: 'conversation.item.create', item: {type: 'message', role: 'user',
    content: [{type: 'input_text', text}]}});
  send({type: 'response.create'});
}

async function recording(file) {
  await ready(false);
  try {
    const decoded = await sound.context.decodeAudioData(await file.arrayBuffer());  // at 24 kHz
    const samples = new Int16Array(decoded.length);
    const channels = [...Array(decoded.numberOfChannels).keys()].map((c) => decoded.getChannelData(c));
    for (let i = 0; i < samples.length; i++) {
      const mean = channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
      samples[i] = Math.round(32767 * Math.max(-1, Math.min(1, mean)));
    }
    interrupt(true);
    if (state.handsFree) await toggleHandsFree();
    send({type: 'input_audio_buffer.clear'});
    for (let at = 0; at < samples.length; at += RATE) sendSound(samples.slice(at, at + RATE));
    spoken([samples]);
  } catch {
    problem(`${file.name} is no recording that this browser can read.`);
  }
}

// -- controls -----------------------------------------------------------------------------------------

function buttons() {
  const on = state.socket?.readyState === WebSocket.OPEN;
  $('hold').disabled = !on || state.handsFree;
  $('hands-free').disabled = !on;
  $('stop').disabled = !state.answer && !state.playing;
  document.querySelector('#compose button').disabled = !on;
  $('file').disabled = !on;
}

$('hold').addEventListener('pointerdown', (event) => {
  if (event.button) return;
  $('hold').setPointerCapture(event.pointerId);
  hold();
});
for (const kind of ['pointerup', 'pointercancel']) $('hold').addEventListener(kind, () => release());
$('hold').addEventListener('contextmenu', (event) => event.preventDefault());
$('hold').addEventListener('click', (event) => {
  // A click that no pointer and no key made comes from a screen reader: it begins and ends a turn.
  if (event.detail || state.byKey) return;
  if (state.holding) release(); else hold();
});
const forTalk = (event) => event.code === 'Space' && !event.ctrlKey && !event.metaKey && !event.altKey
  && (event.target === $('hold') || !event.target.closest('input, textarea, button, audio, a'))
  || event.code === 'Enter' && event.target === $('hold');
document.addEventListener('keydown', (event) => {
  if (event.code === 'Escape' && !$('stop').disabled) $('stop').click();
  if (!forTalk(event)) return;
  event.preventDefault();
  state.byKey = true;
  if (!event.repeat) hold();
});
document.addEventListener('keyup', (event) => {
  if (!forTalk(event)) return;
  event.preventDefault();
  release();
  setTimeout(() => { state.byKey = false; });
});
window.addEventListener('blur', () => release());
$('hands-free').addEventListener('click', toggleHandsFree);
$('stop').addEventListener('click', () => { interrupt(true); buttons(); });
$('compose').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = $('message').value.trim();
  if (!text) return;
  $('message').value = '';
  typed(text);
});
$('file').addEventListener('change', () => {
  const [file] = $('file').files;
  $('file').value = '';
  if (file) recording(file);
});
$('key-entry').addEventListener('submit', (event) => {
  event.preventDefault();
  state.key = $('key').value.trim();
  start();
});
$('settings-button').addEventListener('click', () => {
  const hidden = !$('settings').hidden;
  $('settings').hidden = hidden;
  $('settings-button').setAttribute('aria-expanded', String(!hidden));
  if (!hidden) { document.querySelector('main').scrollTop = 0; $('temperature').focus(); }
});
for (const id of ['temperature', 'audio_temperature']) {
  const show = () => { $(`${id}-out`).textContent = $(id).value; };
  $(id).addEventListener('input', show);
  show();
}
$('settings').addEventListener('change', () => { problem(''); configure(); });

buttons();
start();
