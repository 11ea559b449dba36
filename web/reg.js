// Three things that ComfyUI leaves open, for the nodes of this pack only.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const ROOM = { REGReport: [420, 560], REGToy: [400, 640], REGToyPlot: [400, 520], REGSchedule: [320, 390] } // new nodes whose pictures have text
const LINE = "$$node-text-preview" // the widget in which ComfyUI shows the text that a node sends

// Nodes 2.0 folds advanced inputs away; the classic renderer can do so too (a right click shows them), if it is told.
app.registerExtension({
    name: "REG",
    nodeCreated(node) {
        if (ROOM[node.comfyClass]) node.setSize(ROOM[node.comfyClass])
        const always = app.extensionManager?.setting?.get("Comfy.Node.AlwaysShowAdvancedWidgets")
        if (always || !node.comfyClass?.startsWith("REG")) return
        for (const widget of node.widgets ?? []) if (widget.options?.advanced) widget.advanced = true
        const layout = node.getLayoutWidgets?.bind(node) // or the node keeps room for what it does not show
        if (layout) node.getLayoutWidgets = () => layout().filter((widget) => !widget.advanced || node.showAdvanced)
    },
})

// A run without REG sends no line of its own: take the last one away when the node runs again.
api.addEventListener("executing", ({ detail }) => {
    const id = String(detail?.node ?? detail ?? "").split(":").at(-1) // within its subgraph
    const root = app.rootGraph ?? app.graph
    for (const graph of [root, ...(root?.subgraphs?.values?.() ?? [])]) {
        graph._nodes.filter((node) => String(node.id) === id).forEach(clear)
    }
})

function clear(node) {
    const index = node.widgets?.findIndex((widget) => widget.name === LINE) ?? -1
    if (index < 0 || !String(node.widgets[index].value).startsWith("REG:")) return
    node.widgets[index].onRemove?.()
    node.widgets.splice(index, 1)
    node.setDirtyCanvas?.(true, true)
}
