// Takes the line that a REG run left on a node away when the node runs again: a run without REG sends none of its own.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const LINE = "$$node-text-preview" // the widget in which ComfyUI shows the text that a node sends

function clear(node) {
    const index = node.widgets?.findIndex((widget) => widget.name === LINE) ?? -1
    if (index < 0 || !String(node.widgets[index].value).startsWith("REG:")) return
    node.widgets[index].onRemove?.()
    node.widgets.splice(index, 1)
    node.setDirtyCanvas?.(true, true)
}

api.addEventListener("executing", ({ detail }) => {
    const id = String(detail?.node ?? detail ?? "").split(":").at(-1) // within its subgraph
    const root = app.rootGraph ?? app.graph
    for (const graph of [root, ...(root?.subgraphs?.values?.() ?? [])]) {
        graph._nodes.filter((node) => String(node.id) === id).forEach(clear)
    }
})
