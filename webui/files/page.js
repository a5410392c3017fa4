// Asks webui for the numbers once a second, and shows what it gets.

const PERIOD = 1000; // milliseconds from an answer to the next question
const TIMEOUT = 3000; // milliseconds to wait for one
const IDLE = 5; // seconds without a new hash until the page says so
const RECENT = 3; // seconds that the number beside the chart is the mean of
const SPOKEN = 30; // seconds between announcements to screen readers

const element = (id) => document.getElementById(id);
const svg = document.querySelector("#chart svg");
const still = matchMedia("(prefers-reduced-motion: reduce)");

let answer = null; // the last one of webui
let grown = 0; // when the counter was last seen to grow (s, Redis' clock)
let spoken = 0; // when the speed was last announced (s, Redis' clock)
let pointer = null; // where it is on the chart (pixels)
let timer; // of the next question
let plot = null; // what was drawn: start, speed, and where

// Numbers

function digits(value) {
  const places = value >= 100 ? 0 : value >= 0.95 || value === 0 ? 1 : 2;
  return value.toFixed(places);
}

function clockTime(seconds, style) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB", { timeStyle: style });
}

function show(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}

function showState(text, kind) {
  show("state", text);
  element("state").className = kind;
}

function showNumbers(next) {
  if (next.hashes !== answer?.hashes) grown = next.now;
  answer = next;
  show("coins", answer.coins.toLocaleString("en"));
  show("hashes", Number(answer.hashes).toLocaleString("en"));
  const idle = answer.now - grown > IDLE;
  const speed = idle ? 0 : answer.speed.slice(-RECENT).reduce((a, b) => a + b) / RECENT;
  show("speed", speed > 0 || idle ? digits(speed) : "–");
  if (idle) showState("Nothing is mining: no new hash in the last 5 seconds.", "error");
  else showState(speed > 0 ? "Mining." : "Measuring…", "");
  if (speed > 0) showElsewhere(speed);
  // For those who want no motion, the chart moves once in ten seconds.
  if (!still.matches || !plot || answer.start >= plot.start + 10) draw();
}

/** Put the speed where it is not seen: in the link to share, and for screen readers. */
function showElsewhere(speed) {
  const sentence = `I'm mining DockerCoins at ${digits(speed)} hashes/second`;
  element("share").href = `https://twitter.com/intent/tweet?text=${encodeURIComponent(sentence)}`;
  if (answer.now - spoken < SPOKEN) return;
  spoken = answer.now;
  show("spoken", `${digits(speed)} hashes per second`);
  svg.setAttribute("aria-label", "Chart of the hashes per second in the last 250 seconds: " +
    `now ${digits(speed)}, at most ${digits(Math.max(...answer.speed))}`);
}

// The chart, in pixels, so that its text has the size of the page's

/** Return 1, 2 or 5 times a power of ten, at most six of which reach `top`. */
function axisStep(top) {
  const power = 10 ** Math.floor(Math.log10(top / 6));
  return power * [1, 2, 5, 10].find((factor) => factor * power * 6 >= top);
}

function draw() {
  const { start, speed } = answer;
  const em = parseFloat(getComputedStyle(svg).fontSize);
  const [width, height, left, bottom] = [svg.clientWidth, svg.clientHeight, 2.6 * em, 1.8 * em];
  const highest = Math.max(3, ...speed) * 1.02;
  const step = axisStep(highest);
  const top = step * Math.ceil(highest / step);
  const x = (second) => left + ((second - start + 0.5) / speed.length) * (width - left - em / 2);
  const y = (value) => height - bottom - (value / top) * (height - bottom - em);
  plot = { start, speed, x, y };

  let grid = "", labels = "";
  for (let value = 0; value <= top; value += step) {
    const text = Number(value.toPrecision(3)).toLocaleString("en");
    grid += `M${left},${y(value)}H${width}`;
    labels += `<text class="y" x="${left - em / 2}" y="${y(value) + em / 3}">${text}</text>`;
  }
  for (let minute = Math.ceil(start / 60) * 60; minute < start + speed.length; minute += 60) {
    grid += `M${x(minute)},${y(top)}V${y(0)}`;
    if (x(minute) < left + em || x(minute) > width - 2 * em) continue; // no room for its label
    const text = clockTime(minute, "short");
    labels += `<text x="${x(minute)}" y="${height - em / 2}">${text}</text>`;
  }
  let line = "", area = ""; // a gap where nothing was mined
  speed.forEach((value, i) => {
    if (!value) return;
    const [isFirst, isLast] = [!speed[i - 1], !speed[i + 1]];
    const point = `${x(start + i).toFixed(1)},${y(value).toFixed(1)}`;
    line += `${isFirst ? "M" : "L"}${point}${isLast ? "h0" : ""}`;
    area += `${isFirst ? `M${x(start + i)},${y(0)}L` : "L"}${point}${isLast ? `V${y(0)}Z` : ""}`;
  });
  svg.innerHTML = `<path class="grid" d="${grid}"/>${labels}<path class="area" d="${area}"/>` +
    `<path class="line" d="${line}"/><path class="cursor"/>`;
  showValue();
}

/** Write the time and the speed under the pointer, which is so many pixels from the left. */
function showValue(at = pointer) {
  pointer = at;
  const box = element("value");
  box.hidden = pointer === null || plot === null;
  if (box.hidden) return svg.querySelector(".cursor")?.removeAttribute("d");
  const { start, speed, x, y } = plot;
  const nearest = Math.round((pointer - x(start)) / (x(start + 1) - x(start)));
  const second = start + Math.min(Math.max(nearest, 0), speed.length - 1);
  const value = speed[second - start];
  svg.querySelector(".cursor").setAttribute("d", `M${x(second)},${y(0)}V${y(value)}h0`);
  box.textContent = `${clockTime(second, "medium")}  ${value ? `${digits(value)} hashes/s` : "–"}`;
  box.style.left = `${Math.min(x(second) + 8, svg.clientWidth - box.offsetWidth)}px`;
}

svg.onpointermove = svg.onpointerdown = (event) => showValue(event.offsetX);
svg.onpointerleave = () => showValue(null);
new ResizeObserver(() => answer && draw()).observe(svg);

// The questions to webui

function showError(text) {
  show("speed", "–");
  showState(`${text} Trying again each second.`, "error");
}

async function poll() {
  try {
    const response = await fetch("speed", { signal: AbortSignal.timeout(TIMEOUT) });
    if (response.status !== 503) showNumbers(await response.json());
    else showError("Redis is unreachable, so there are no numbers.");
  } catch {
    showError("webui does not answer.");
  }
  clearTimeout(timer); // of an answer that came meanwhile
  timer = setTimeout(poll, PERIOD);
}

// Browsers slow the timers of a hidden tab down: ask at once when it is looked at.
document.addEventListener("visibilitychange", () => document.hidden || poll());
poll();
