// Asks the browser whether it may notify; it only does so after a click.

export default function ({ data, parentElement }) {
  const box = parentElement.querySelector(".notify") ?? parentElement.appendChild(document.createElement("div"));
  box.className = "notify";
  const draw = () => {
    const state = window.Notification?.permission ?? "denied";
    if (state !== "default") return box.replaceChildren(document.createTextNode(data[state]));
    const button = document.createElement("button");
    button.textContent = data.ask;
    button.addEventListener("click", () => Notification.requestPermission().then(draw));
    box.replaceChildren(button);
  };
  draw();
}
