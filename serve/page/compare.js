// Two images, one question: do they show the same?

import { model, verify } from "./api.js";
import { Picker } from "./picker.js";

const verdict = document.getElementById("verdict");
const rate = document.getElementById("rate");

export class Compare {
  constructor(onTrouble) {
    this.onTrouble = onTrouble;
    const place = (name) => document.querySelector(`[data-picker="${name}"]`);
    this.first = new Picker(place("first"), () => this.run());
    this.second = new Picker(place("second"), () => this.run());
    rate.addEventListener("change", () => this.run());
  }

  async load() {
    const { thresholds } = await model();
    const rates = Object.keys(thresholds).sort((a, b) => Number(b) - Number(a));
    rate.replaceChildren(...rates.map((one) => new Option(`1 in ${Math.round(1 / Number(one)).toLocaleString("en")} different pairs`, one)));
    if (rates.length) rate.value = rates[rates.length - 1];
    document.getElementById("rate-field").hidden = rates.length === 0;
  }

  // Fills the next free side, as pasting does.
  take(image) {
    const side = this.first.image && !this.second.image ? this.second : this.first;
    side.take(image);
  }

  async run() {
    if (!this.first.image || !this.second.image) return;
    try {
      this.draw(await verify(this.first.image, this.second.image, rate.value));
    } catch (error) {
      this.onTrouble(error);
    }
  }

  draw(answer) {
    const heading = document.createElement("p");
    heading.className = "decision";
    heading.dataset.same = String(answer.same);
    if (answer.same === null) heading.textContent = `Similarity ${answer.similarity.toFixed(3)}`;
    else heading.textContent = answer.same ? "The same" : "Different";
    const scale = document.createElement("div");
    scale.className = "scale";
    scale.setAttribute("aria-hidden", "true");
    const bar = document.createElement("span");
    bar.className = "reach";
    bar.style.setProperty("--part", Math.max(0, answer.similarity));
    scale.append(bar);
    const text = document.createElement("p");
    text.className = "facts";
    if (answer.threshold === null) {
      text.textContent = "This model carries no calibrated threshold; kindred evaluate makes one.";
    } else {
      const mark = document.createElement("span");
      mark.className = "mark";
      mark.style.setProperty("--part", Math.max(0, answer.threshold));
      scale.append(mark);
      text.textContent =
        `similarity ${answer.similarity.toFixed(3)}, the threshold is ${answer.threshold.toFixed(3)} ` +
        `· ${answer.timings_ms.total.toFixed(1)} ms`;
    }
    verdict.replaceChildren(heading, scale, text);
  }
}
