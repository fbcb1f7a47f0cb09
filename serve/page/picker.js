// A square that takes an image by choosing, dropping, pasting or photographing.

const template = document.getElementById("picker");
const camera = document.getElementById("camera");
const viewfinder = document.getElementById("viewfinder");

export class Picker {
  // `onImage` gets the File or Blob, null when it is cleared; `place` is the element marked with data-picker.
  constructor(place, onImage) {
    this.onImage = onImage;
    this.image = null;
    place.append(template.content.cloneNode(true));
    this.zone = place.querySelector(".drop");
    this.preview = place.querySelector("img");
    this.title = place.dataset.title;
    place.querySelector(".title").textContent = this.title;
    const input = place.querySelector("input");
    input.setAttribute("aria-label", `${this.title}: choose a file`);
    input.addEventListener("change", () => {
      if (input.files.length) this.take(input.files[0]);
      input.value = "";
    });
    const shoot = place.querySelector(".shoot");
    shoot.setAttribute("aria-label", `${this.title}: take a picture`);
    if (navigator.mediaDevices?.getUserMedia) shoot.addEventListener("click", () => this.photograph());
    else shoot.hidden = true;
    this.clear = place.querySelector(".clear");
    this.clear.setAttribute("aria-label", `${this.title}: clear`);
    this.clear.addEventListener("click", () => {
      this.show(null);
      input.focus();
      this.onImage(null);
    });
    for (const kind of ["dragenter", "dragover"]) {
      this.zone.addEventListener(kind, (event) => {
        event.preventDefault();
        this.zone.classList.add("over");
      });
    }
    this.zone.addEventListener("dragleave", () => this.zone.classList.remove("over"));
    this.zone.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.zone.classList.remove("over");
      const file = imageIn(event.dataTransfer);
      if (file) this.take(file);
    });
  }

  take(image) {
    this.show(image);
    this.onImage(image);
  }

  // Shows `image` (a Blob) without searching; null empties the square.
  show(image) {
    this.image = image;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = image ? URL.createObjectURL(image) : "";
    this.preview.hidden = this.clear.hidden = !image;
    this.zone.classList.toggle("filled", Boolean(image));
    if (image) {
      this.preview.src = this.url;
      this.preview.alt = this.title;
    }
  }

  async photograph() {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      this.zone.dispatchEvent(new CustomEvent("trouble", { bubbles: true, detail: `No camera: ${error.message}` }));
      return;
    }
    viewfinder.srcObject = stream;
    camera.returnValue = "";
    camera.showModal();
    camera.addEventListener(
      "close",
      async () => {
        const taken = camera.returnValue === "shoot" ? await snapshot() : null;
        for (const track of stream.getTracks()) track.stop();
        viewfinder.srcObject = null;
        if (taken) this.take(taken);
      },
      { once: true },
    );
  }
}

function snapshot() {
  const canvas = document.createElement("canvas");
  canvas.width = viewfinder.videoWidth;
  canvas.height = viewfinder.videoHeight;
  canvas.getContext("2d").drawImage(viewfinder, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

export function imageIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}
