// What the library logs goes to the error output, and of that only what it warns of: the input of the tests' log, never of the protocol.
import { stderr } from "node:process";
import { format } from "node:util";

// Nothing of these says that something is wrong: a kind of message that the library does not know, and what a server has no rules for.
const harmless = ["unexpected encrypted to-device event", "push rule"];

for (const quiet of ["debug", "log", "info", "trace"]) {
    console[quiet] = () => {};
}
for (const loud of ["warn", "error"]) {
    console[loud] = (...args) => {
        const line = format(...args);
        if (!harmless.some((text) => line.includes(text))) {
            stderr.write(`${loud}: ${line}\n`);
        }
    };
}
