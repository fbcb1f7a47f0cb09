// The form that adds an image: its label, id and metadata.

import { addItem } from "./api.js";
import * as exact from "./exact.js";
import { plain } from "./filter.js";
import { Picker } from "./picker.js";

const by = (id) => document.getElementById(id);

export class Adding {
  // `onAdded` is awaited after each image that was stored, `onTrouble` gets what went wrong.
  constructor(onAdded, onTrouble) {
    this.picker = new Picker(document.querySelector('[data-picker="new"]'), () => {
      by("added").textContent = "";
    });
    by("add").addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await this.submit(onAdded);
      } catch (error) {
        onTrouble(error);
      }
    });
  }

  take(image) {
    this.picker.take(image);
  }

  async submit(onAdded) {
    if (!this.picker.image) throw new Error("Choose, drop or paste an image first.");
    const answer = await addItem(this.picker.image, by("add-id").value.trim(), by("add-label").value.trim(), metadata());
    by("added").textContent = `Added as ${exact.write(answer.ids[0])}. It can be found from now on.`;
    this.picker.show(null);
    by("add-id").value = "";
    await onAdded();
  }
}

function metadata() {
  const fields = {};
  for (const line of by("add-metadata").value.split("\n")) {
    const [name, ...rest] = line.split(":");
    if (name.trim() && rest.length) fields[name.trim()] = plain(rest.join(":").trim());
  }
  return fields;
}
