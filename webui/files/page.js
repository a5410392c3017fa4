// The page: asks webui for the numbers each second, and shows them.

import { SHOWN, Speed } from "./speed.js";

const PERIOD = 1000; // milliseconds from one question to the next
const TURN = 0.15; // seconds after each whole one of Redis' clock: when webui has a speed more (webui/state.lua)
const TIMEOUT = 2000; // milliseconds to wait for an answer
const SPOKEN = 30000; // milliseconds at least from one announcement to the next

const speed = new Speed();
const element = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let heard = 0; // when webui last answered, in milliseconds since the page was opened
let spoken = -SPOKEN; // likewise, when the speed was last announced

// The words and numbers

function digits(value) {
  const places = value >= 100 ? 0 : value >= 0.95 || value === 0 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
}

function show(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text; // a screen reader hears of changes only
}

function showState(text, trouble) {
  show("state", text);
  element("state").classList.toggle("trouble", trouble);
}

function showSpeed(value) {
  show("speed", value === null ? "–" : digits(value));
  if (value === null) return;
  const sentence = `I'm mining DockerCoins at ${digits(value)} hashes/second`;
  element("share").href = `https://twitter.com/intent/tweet?text=${encodeURIComponent(sentence)}`;
  if (performance.now() - spoken < SPOKEN) return;
  spoken = performance.now();
  show("spoken", `${digits(value)} hashes per second`);
  const top = Math.max(0, ...chart.data[1]);
  element("chart").setAttribute("aria-label", `Chart of the hashes per second in the last ${SHOWN} seconds: ` +
    `now ${digits(value)}, at most ${digits(top)}`);
}

function showAnswer({ coins, hashes }) {
  show("coins", coins.toLocaleString("en"));
  show("hashes", Number(hashes).toLocaleString("en"));
  const latest = chart.data[1].slice(-3).findLast((value) => value !== null);
  showSpeed(speed.idle ? 0 : latest ?? null);
  if (speed.idle) showState("Nothing is mining: no new hash in the last 5 seconds. Is a worker running?", true);
  else showState(latest === undefined ? "Measuring…" : "Mining.", false);
}

// The chart

/** The seconds that the chart spans. It moves on when webui is silent, so that the silence is seen as a gap. */
function span() {
  const edge = speed.end - 0.5 + Math.floor((performance.now() - heard) / 1000);
  // The chart slides to the left each second; for those who want no motion, it stands still for 10 seconds.
  const right = still.matches ? Math.ceil(edge / 10) * 10 : edge;
  return [right - SHOWN + 1, right];
}

/** The speeds that the axis spans: from 0 to a round number above the highest. */
function height(_chart, _lowest, highest) {
  const top = (highest || 3) * 1.1;
  const step = 10 ** Math.floor(Math.log10(top)) / 2;
  return [0, Math.ceil(top / step) * step];
}

const clockTime = (seconds, style = "medium") =>
  new Date(seconds * 1000).toLocaleTimeString("en-GB", { timeStyle: style });

/** Write the time and speed under the pointer next to it. */
function showValue({ cursor, data, over }) {
  const box = element("value");
  box.hidden = cursor.idx === null || cursor.left < 0;
  if (box.hidden) return;
  const value = data[1][cursor.idx];
  box.textContent = `${clockTime(data[0][cursor.idx])}  ${value === null ? "–" : `${digits(value)} hashes/s`}`;
  const x = Math.max(0, Math.min(cursor.left + 12, over.clientWidth - box.offsetWidth));
  box.style.transform = `translate(${over.offsetLeft + x}px, ${over.offsetTop + 4}px)`;
}

function draw() {
  chart.setData(speed.plot());
}

const em = parseFloat(getComputedStyle(document.body).fontSize);
const axis = {
  font: `${Math.round(em * 0.8)}px system-ui, sans-serif`,
  stroke: () => colour("--soft"), // functions, so that another colour scheme needs no new chart
  grid: { stroke: () => colour("--grid"), width: 1 },
  ticks: { show: false },
};

const size = () => ({ width: element("chart").clientWidth, height: element("chart").clientHeight });

// window.chart: what is drawn, for the tests and for the curious.
const chart = window.chart = new uPlot({
  ...size(),
  padding: [em / 2, em, 0, 0],
  legend: { show: false },
  cursor: { y: false, drag: { x: false, y: false } },
  scales: { x: { range: span }, y: { range: height } },
  axes: [
    { ...axis, size: em * 2.2, incrs: [10, 30, 60, 120], space: (...[, , , , width]) => em * (width < em * 25 ? 3 : 5),
      values: (_chart, times, _axis, _space, step) =>
        times.map((time) => (speed.end > 0 ? clockTime(time, step < 60 ? "medium" : "short") : "")) },
    { ...axis, size: em * 3, space: (...[, , , , height]) => Math.max(em * 2, height / 8),
      values: (_chart, speeds) => speeds.map((speed) => speed.toLocaleString("en")) },
  ],
  series: [
    {},
    { label: "hashes/s", width: 2, points: { show: false }, stroke: () => colour("--line"), fill: () => colour("--area") },
  ],
  hooks: { setCursor: [showValue] },
}, speed.plot(), element("chart"));

const value = document.createElement("div");
value.id = "value";
value.hidden = true;
element("chart").append(value);
new ResizeObserver(() => chart.setSize(size())).observe(element("chart"));
dark.addEventListener("change", () => chart.redraw());
still.addEventListener("change", draw);

// The conversation with webui

async function poll() {
  const response = await fetch(`json?since=${speed.since}`, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
  if (response.status === 503) return "Redis is away, so webui has no numbers. Trying again each second.";
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  speed.add(answer);
  heard = performance.now();
  due = heard + PERIOD * (1 - (((answer.clock ?? answer.now) - TURN) % 1)); // before, there is no news
  draw();
  showAnswer(answer);
  return "";
}

let timer;
let due = 0; // when to ask next, in milliseconds since the page was opened
let asking = false;

async function pollForever() {
  if (asking) return; // one question at a time
  asking = true;
  clearTimeout(timer);
  due = performance.now() + PERIOD;
  let trouble = "";
  try {
    trouble = await poll();
  } catch {
    trouble = "webui does not answer. Trying again each second.";
  }
  if (trouble) {
    speed.interrupt();
    draw();
    showSpeed(null);
    showState(trouble, true);
  }
  asking = false;
  timer = setTimeout(pollForever, Math.max(200, due - performance.now()));
}

// Browsers slow the timers of a hidden tab down: ask at once when it is looked at.
document.addEventListener("visibilitychange", () => document.hidden || pollForever());
pollForever();
