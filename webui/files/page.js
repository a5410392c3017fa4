// Polls webui once a second and shows the numbers and the chart.

const PERIOD = 1000; // milliseconds from an answer to the next request
const TIMEOUT = 3000; // milliseconds to wait for an answer
const RECENT = 5; // seconds: the speed is their mean, and 0 after as many without a hash
const SPOKEN = 30; // seconds between announcements to screen readers

const element = (id) => document.getElementById(id);
const svg = document.querySelector("#chart svg");
const still = matchMedia("(prefers-reduced-motion: reduce)");

let answer = null; // the last one from webui
let grown = 0; // when the counter was last seen to grow (s, Redis' clock)
let spoken = 0; // when the speed was last announced (s, Redis' clock)
let pointer = null; // its distance from the chart's left edge (pixels)
let timer; // of the next request
let plot = null; // what was drawn last: start, speed, and the scales x and y

// Numbers

const digits = (value) => value.toFixed(value < 100 ? 1 : 0);

const clockTime = (seconds, timeStyle) =>
  new Date(seconds * 1000).toLocaleTimeString("en-GB", { timeStyle });

function show(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}

function showSpeed(speed, state, kind = "") {
  show("speed", speed);
  show("state", state);
  element("state").className = kind;
}

function showNumbers(next) {
  // While Redis or webui was unreachable, the counter may have grown unnoticed.
  if (next.hashes !== answer?.hashes || next.now - answer.now > RECENT) grown = next.now;
  answer = next;
  show("coins", answer.coins.toLocaleString("en"));
  show("hashes", Number(answer.hashes).toLocaleString("en"));
  const recent = answer.speed.slice(-RECENT);
  if (answer.now - grown > RECENT) {
    showSpeed("0.0", `Nothing is mining: no new hash for ${RECENT} seconds.`, "error");
  } else if (recent.includes(0)) {
    showSpeed("–", `Mining: the speed appears after ${RECENT} seconds without a gap.`);
  } else {
    const speed = digits(recent.reduce((a, b) => a + b) / RECENT);
    showSpeed(speed, "Mining.");
    showElsewhere(speed);
  }
  // With reduced motion, the chart moves once in ten seconds.
  if (!still.matches || !plot || answer.start >= plot.start + 10) draw();
}

/** Put the speed into the link to share and the text for screen readers. */
function showElsewhere(speed) {
  const sentence = `I'm mining DockerCoins at ${speed} hashes/second`;
  element("share").href = `https://twitter.com/intent/tweet?text=${encodeURIComponent(sentence)}`;
  if (answer.now - spoken < SPOKEN) return;
  spoken = answer.now;
  show("spoken", `${speed} hashes per second`);
}

// The chart, in pixels, so that its text is as large as the page's

/** Return the axis step: 1, 2 or 5 times a power of ten, with at most six steps up to `top`. */
function axisStep(top) {
  const power = 10 ** Math.floor(Math.log10(top / 6));
  return power * [1, 2, 5, 10].find((factor) => factor * power * 6 >= top);
}

function draw() {
  const { start, speed } = answer;
  const width = svg.clientWidth, height = svg.clientHeight;
  const em = parseFloat(getComputedStyle(svg).fontSize), left = 2.6 * em, bottom = 1.8 * em;
  const highest = Math.max(3, ...speed) * 1.02;
  const step = axisStep(highest);
  const top = step * Math.ceil(highest / step);
  const x = (second) => left + ((second - start + 0.5) / speed.length) * (width - left - em / 2);
  const y = (value) => height - bottom - (value / top) * (height - bottom - em);
  plot = { start, speed, x, y };

  let grid = "", labels = "";
  for (let value = 0; value <= top; value += step) {
    grid += `M${left},${y(value)}H${width}`;
    labels += `<text class="y" x="${left - em / 2}" y="${y(value) + em / 3}">${value}</text>`;
  }
  for (let minute = Math.ceil(start / 60) * 60; minute < start + speed.length; minute += 60) {
    grid += `M${x(minute)},${y(top)}V${y(0)}`;
    if (x(minute) < left + em || x(minute) > width - 2 * em) continue; // no room for its label
    const text = clockTime(minute, "short");
    labels += `<text x="${x(minute)}" y="${height - em / 2}">${text}</text>`;
  }
  let area = ""; // with a gap where nothing was mined
  speed.forEach((value, i) => {
    if (!value) return;
    if (!speed[i - 1]) area += `M${x(start + i)},${y(0)}`;
    area += `L${x(start + i).toFixed(1)},${y(value).toFixed(1)}`;
    if (!speed[i + 1]) area += `V${y(0)}Z`;
  });
  svg.innerHTML = `<path class="grid" d="${grid}"/>${labels}` +
    `<path class="area" d="${area}"/><path class="cursor"/>`;
  svg.setAttribute("aria-label", `Chart of the hashes per second in the last ${speed.length} ` +
    `seconds: now ${digits(speed.at(-1))}, at most ${digits(Math.max(...speed))}`);
  showValue();
}

/** Show the time and speed at the pointer, `at` pixels from the left, or hide them if null. */
function showValue(at = pointer) {
  pointer = at;
  const box = element("value");
  box.hidden = pointer === null || plot === null;
  if (box.hidden) return svg.querySelector(".cursor")?.removeAttribute("d");
  const { start, speed, x, y } = plot;
  const nearest = Math.round((pointer - x(start)) / (x(start + 1) - x(start)));
  const second = start + Math.min(Math.max(nearest, 0), speed.length - 1);
  const value = speed[second - start];
  svg.querySelector(".cursor").setAttribute("d", `M${x(second)},${y(0)}V${y(value)}`);
  box.textContent = `${clockTime(second, "medium")}  ${value ? `${digits(value)} hashes/s` : "–"}`;
  box.style.left = `${Math.min(x(second) + 8, svg.clientWidth - box.offsetWidth)}px`;
}

svg.onpointermove = svg.onpointerdown = (event) => showValue(event.offsetX);
svg.onpointerleave = () => showValue(null);
new ResizeObserver(() => { if (answer) draw(); }).observe(svg);

// Polling

function showError(text) {
  showSpeed("–", `${text}. Trying again each second.`, "error");
}

async function poll() {
  try {
    const response = await fetch("speed", { signal: AbortSignal.timeout(TIMEOUT) });
    const next = await response.json();
    if (response.ok) showNumbers(next);
    else showError(next.error ?? "webui is unreachable"); // a proxy may answer in JSON, too
  } catch {
    showError("webui is unreachable");
  }
  clearTimeout(timer); // another poll may have set one meanwhile
  timer = setTimeout(poll, PERIOD);
}

// Browsers throttle the timers of a hidden tab: poll at once when it becomes visible.
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
poll();
