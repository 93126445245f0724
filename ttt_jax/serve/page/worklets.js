// Both directions of sound, in the audio thread. The protocol's rate is 24 kHz.

const RATE = 24000;

class Recorder extends AudioWorkletProcessor {
  // Posts Int16Array pieces of the microphone at 24 kHz, 40 ms each, with their peak.
  constructor() {
    super();
    this.piece = new Int16Array(960);
    this.filled = 0;
    this.peak = 0;
    this.ratio = sampleRate / RATE;   // input samples per output sample
    this.reach = Math.ceil(8 * Math.max(1, this.ratio));
    this.held = new Float32Array(2 * this.reach);
    this.next = this.reach;           // place of the next output sample in held
  }

  put(sample) {
    const limited = Math.max(-1, Math.min(1, sample));
    this.peak = Math.max(this.peak, Math.abs(limited));
    this.piece[this.filled++] = Math.round(limited * 32767);
    if (this.filled < this.piece.length) return;
    this.port.postMessage({pcm: this.piece.buffer.slice(0), peak: this.peak});
    this.filled = 0;
    this.peak = 0;
  }

  resample(input) {
    // Windowed sinc; only browsers that cannot open the microphone at 24 kHz come here.
    const samples = new Float32Array(this.held.length + input.length);
    samples.set(this.held);
    samples.set(input, this.held.length);
    const width = Math.max(1, this.ratio);
    while (this.next + this.reach < samples.length) {
      const first = Math.ceil(this.next - this.reach), last = Math.floor(this.next + this.reach);
      let sum = 0;
      for (let i = Math.max(0, first); i <= last; i++) {
        const x = (i - this.next) / width;
        const sinc = x ? Math.sin(Math.PI * x) / (Math.PI * x) : 1;
        sum += samples[i] * sinc * (0.5 + 0.5 * Math.cos(Math.PI * (i - this.next) / this.reach));
      }
      this.put(sum / width);
      this.next += this.ratio;
    }
    this.held = samples.slice(samples.length - 2 * this.reach);
    this.next -= samples.length - this.held.length;
  }

  process(inputs) {
    const input = inputs[0][0];
    if (!input) return true;
    if (this.ratio === 1) input.forEach((sample) => this.put(sample));
    else this.resample(input);
    return true;
  }
}

class Player extends AudioWorkletProcessor {
  // Plays Int16Array pieces without gaps, in order; says what was played, and when it ran dry.
  constructor() {
    super();
    this.queue = [];
    this.at = 0;        // sample in the first piece
    this.played = 0;    // samples of the current answer
    this.ended = true;  // no more pieces will come
    this.said = 0;
    this.port.onmessage = ({data}) => {
      if (data.kind === 'begin') this.reset(data.name);
      else if (data.name !== this.name) return;
      else if (data.kind === 'push') this.queue.push(new Int16Array(data.pcm));
      else if (data.kind === 'end') { this.ended = true; this.idle(); }
      else if (data.kind === 'stop') { this.queue = []; this.at = 0; this.ended = true; this.tell('stopped'); }
    };
  }

  reset(name) {
    this.name = name;
    this.queue = [];
    this.at = this.played = this.said = this.dry = 0;
    this.ended = this.silent = false;
  }

  tell(kind) {
    this.port.postMessage({kind, name: this.name, played: this.played, dry: this.dry});
  }

  idle() {
    if (this.ended && !this.queue.length && !this.silent) {
      this.silent = true;
      this.tell('finished');
    }
  }

  process(_, outputs) {
    const output = outputs[0][0];
    let filled = 0;
    while (filled < output.length && this.queue.length) {
      const piece = this.queue[0];
      const count = Math.min(output.length - filled, piece.length - this.at);
      for (let i = 0; i < count; i++) output[filled + i] = piece[this.at + i] / 32768;
      filled += count;
      this.at += count;
      if (this.at === piece.length) { this.queue.shift(); this.at = 0; }
    }
    if (filled) {
      if (!this.played) this.tell('started');
      this.played += filled;
      if (this.played - this.said > 2400) { this.said = this.played; this.tell('playing'); }
    }
    if (filled < output.length && this.played && !this.ended) this.dry += output.length - filled;
    this.idle();
    return true;
  }
}

registerProcessor('recorder', Recorder);
registerProcessor('player', Player);
