// A program with devices that encrypt, which the end-to-end tests drive: it reads a command from each line of its input,
// {id, device, command, ...arguments}, and answers each with a line {id, result} or {id, error}, in the order in which they are done.
// All devices of a test are in one program, each with a disk of its own.
import { createInterface } from "node:readline";
import { stdin, stdout } from "node:process";
import "./console.js"; // before the library: it takes hold of the console
import { Device } from "./device.js";

const devices = new Map();

async function obey({ id, device, command, ...args }) {
    try {
        if (!devices.has(device)) {
            devices.set(device, new Device());
        }
        const result = await devices.get(device).do(command, args);
        stdout.write(`${JSON.stringify({ id, result: result ?? null })}\n`);
    } catch (error) {
        stdout.write(`${JSON.stringify({ id, error: String(error?.stack ?? error) })}\n`);
    }
}

for await (const line of createInterface({ input: stdin })) {
    void obey(JSON.parse(line));
}
process.exit(0); // whatever the devices are at
