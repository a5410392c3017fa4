// The numbers behind the chart: what webui says, kept for as long as it is shown. Time in here is the server's alone,
// as the browser's clock may be wrong.

export const SHOWN = 250; // seconds
const LATE = 5; // seconds that are asked for again, as a slow worker may still add to them
const WINDOW = 5; // seconds over which the counter is differenced where the server has no speeds

export class Speed {
  end = 0; // the first second that is not known yet
  #seconds = new Map(); // each second's hashes, or null when nothing was mined in it
  #samples = []; // { time, hashes }: the counter during the last WINDOW seconds
  #estimates = []; // { from, time, speed }: speeds differenced from the samples
  #whole = 1; // in how many answers from now on to ask for all seconds
  #answers = 0;

  /** The second from which on to ask for speeds. */
  get since() {
    return this.#whole > 0 ? 0 : this.end - LATE;
  }

  /** There was no answer. What workers could not count meanwhile comes in late, so ask for everything a few times. */
  interrupt() {
    this.#samples = [];
    this.#whole = 10;
  }

  /** Take in an answer of webui, or of the original, which has neither clock nor speeds. */
  add({ hashes, now, clock = now, start, speed = [] }) {
    const counter = Number(hashes); // null, before the first hash, is 0
    if (!Number.isFinite(clock) || !Number.isFinite(counter)) throw new TypeError("no numbers");
    this.#answers += 1;
    // All of it from time to time, too: a worker that lost Redis for a while comes late without our noticing.
    this.#whole = Math.max(this.#whole - 1, this.#answers % 30 === 0 ? 1 : 0);

    speed.forEach((value, i) => this.#seconds.set(start + i, value));
    if (speed.length > 0) this.end = start + speed.length;
    else {
      this.end = Math.floor(clock) - 2;
      this.#whole = 1;
    }
    for (const second of this.#seconds.keys()) {
      if (second < this.end - SHOWN || second >= this.end) this.#seconds.delete(second);
    }
    this.#sample(clock, counter);
  }

  #sample(time, hashes) {
    const last = this.#samples.at(-1);
    if (last && (hashes < last.hashes || time < last.time - 2)) { // the counter or the clock was set back
      this.#estimates = [];
      this.interrupt();
    } else if (last && time <= last.time) { // another replica of webui, with another clock
      return;
    }
    this.#samples.push({ time, hashes });
    this.#samples = this.#samples.filter((sample) => sample.time > time - WINDOW - 0.5);
    const first = this.#samples[0];
    if (time - first.time > WINDOW - 1) {
      const speed = (hashes - first.hashes) / (time - first.time);
      this.#estimates.push({ from: first.time, time: (first.time + time) / 2, speed: speed || null });
    }
    this.#estimates = this.#estimates.filter((estimate) => estimate.time > time - SHOWN);
  }

  /** Whether the counter has stood still for about WINDOW seconds. */
  get idle() {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    return this.#samples.length > 1 && last.time - first.time > WINDOW - 1 && last.hashes === first.hashes;
  }

  /** What to draw: [times, speeds], each speed in the middle of its second, null where there is none. */
  plot() {
    const of = (second) => this.#seconds.get(second);
    const known = Math.max(0, ...[...this.#seconds.keys()].filter((second) => of(second) !== null));
    // Estimates are for what the server cannot say: all of it (an original webui), or what only original workers mine.
    const estimates = this.#estimates.filter((estimate) => estimate.from > known + 1);
    const times = [];
    const speeds = [];
    for (let second = this.end - SHOWN; second < this.end && !(second + 0.5 >= estimates[0]?.time); second++) {
      times.push(second + 0.5);
      // Next to a second without hashes, mining began or ended within the second: its hashes are no speed.
      speeds.push(of(second - 1) === null || of(second + 1) === null ? null : of(second) ?? null);
    }
    for (const { time, speed } of estimates) {
      if (time - times.at(-1) > 3) { // there was no answer: a gap
        times.push(time - 1);
        speeds.push(null);
      }
      times.push(time);
      speeds.push(speed);
    }
    return [times, speeds];
  }
}
