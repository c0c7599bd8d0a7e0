"use strict";
// Sorts the samples, and goes to the next with j and the one before with k. All else works without it.
const list = document.querySelector(".samples");
if (list) {
  const tools = document.querySelector(".tools");
  const select = tools.querySelector("select");
  tools.hidden = false;
  select.addEventListener("change", () => {
    const down = !select.value.startsWith("-");
    const name = select.value.replace("-", "");
    const value = (sample) => (name in sample.dataset ? Number(sample.dataset[name]) : -Infinity);
    const sorted = [...list.children].sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)));
    list.append(...sorted);
  });
  document.addEventListener("keydown", (event) => {
    if (event.target === select || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { j: 1, k: -1 }[event.key];
    if (!step) return;
    const samples = [...list.children];
    const at = samples.indexOf(document.activeElement);
    const next = samples[at < 0 ? (step > 0 ? 0 : samples.length - 1) : at + step];
    if (next) {
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "start", behavior: "instant" });
    }
  });
}
